"""A cell: one training and its test, with everything that its figures depend on; and the files of finished cells."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from evidence.baselines import count_multiply_adds, frames_of_equal_cost
from evidence.claims import Architecture, Claim, Start, Transformer, Variant
from evidence.data import PARTS, SHARED, DataSet
from uniformerv2 import ModelConfig, Recipe, Views, __version__, arm
from uniformerv2.atomic import write_text
from uniformerv2.errors import CheckpointError
from uniformerv2.model.config import layout_options
from uniformerv2.text import parse_json
from uniformerv2.train.recipe import ModelRecipe
from uniformerv2.train.recipes import find_recipe

PROTOCOL = 1  # another number once cells are trained or measured in another way: results are not mixed
SEEDS, QUICK_SEEDS = (0, 1, 2), (0,)
# the same for all targets: images that the transformer sees, at the rate that the demo's was trained with
PRETRAINING: dict[str, Any] = {"steps": 300, "batch_size": 256, "learning_rate": 2e-3, "seed": 0}
QUICK_STEPS = 60
_NO_MODEL = ModelRecipe(checkpoint="")  # until a cell is run
STILLS = files("uniformerv2") / "assets" / "stills_vit.safetensors"


@dataclass(frozen=True)
class Cell:
    """What a result depends on. Claims share the cells that are equal: the variant's name is no part of it."""

    data: str
    rows: str  # which videos: `Sources.digest`
    fold: int
    start: Start
    model: Mapping[str, Any]  # fields of ModelConfig that differ from its defaults
    recipe: Mapping[str, Any]  # fields of uniformerv2.Recipe that do; its checkpoint is made from `start` and `model`
    protocol: int = PROTOCOL
    version: str = __version__
    architecture: Architecture | None = None  # None: UniFormerV2
    probe: Mapping[str, Any] | None = None  # fields of ProbeRecipe that differ from its defaults and from `recipe`
    pretraining: Mapping[str, Any] | None = None  # on drawn stills, of a start that is made so

    @property
    def seed(self) -> int:
        return int(self.recipe.get("seed", 0))

    @property
    def digest(self) -> str:
        # without what is None: a field that comes later leaves the cells that do not use it as they are
        chosen = {name: value for name, value in asdict(self).items() if value is not None}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]


def cells_of(variant: Variant, data: DataSet, rows: str, *, seed: int, quick: bool = False) -> list[Cell]:
    """The cells of a variant, one for each fold."""
    if variant.own:
        own = _fields(find_recipe(variant.own).recipe)
        recipe = {name: value for name, value in own.items() if name not in ("arm", "checkpoint")}
        recipe["epochs"] = data.own_epochs or recipe["epochs"]
    else:
        recipe = SHARED | dict(data.recipe)
    recipe |= {"seed": seed}
    usual = recipe["epochs"]
    recipe |= variant.recipe
    if variant.reverses:
        recipe["reverse_labels"] = data.reversals
    if quick:
        recipe["epochs"] = max(1, round(recipe["epochs"] / usual * data.quick_epochs))
    # the last epoch alone is evaluated, and counts: nothing is chosen by the test videos
    recipe["evaluate_every"] = recipe["epochs"]
    model = _config(recipe["size"], variant)
    if variant.architecture is not None:
        recipe["num_frames"] = _frames_of_equal_cost(variant, recipe["num_frames"], recipe["size"])
    different = {name: value for name, value in recipe.items() if value != _defaults().get(name)}
    # as JSON has them, so that a cell equals the one that is read from its result
    cell = json.loads(json.dumps({"model": model, "recipe": different}))
    cell |= {
        "architecture": variant.architecture,
        "probe": variant.probe and dict(variant.probe),
        "pretraining": _pretraining(variant.start, data, quick=quick),
    }
    return [Cell(data.name, rows, fold, variant.start, **cell) for fold in range(data.fold_count)]


def _pretraining(start: Start, data: DataSet, *, quick: bool) -> dict[str, Any] | None:
    if start in ("stills", "scratch", "vit_tiny"):
        return None
    if start == "merged":
        return {"sets": list(PARTS), "epochs": data.quick_epochs if quick else data.recipe["epochs"]}
    return PRETRAINING | {"steps": QUICK_STEPS} if quick else PRETRAINING


@cache
def _defaults() -> dict[str, Any]:
    """Of all fields of a recipe. No two parts of it have a field of the same name."""
    return _fields(Recipe(_NO_MODEL))


def _fields(recipe: Recipe) -> dict[str, Any]:
    return {name: value for part in asdict(recipe).values() for name, value in part.items()}


def recipe_of(cell: Cell, checkpoint: Path) -> Recipe:
    """The recipe of a cell that starts from this file."""
    return Recipe(_NO_MODEL).vary(
        **{name: _tuple(value) for name, value in cell.recipe.items()}, checkpoint=str(checkpoint)
    )


def _config(size: int, variant: Variant) -> dict[str, Any]:
    options = dict(variant.model)
    image = _image_config(size, variant.transformer)
    config = replace(image, **{**layout_options(options.pop("layout"), image.depth), **options})
    usual = asdict(ModelConfig(num_classes=config.num_classes))
    return {name: value for name, value in asdict(config).items() if value != usual[name]}


def _frames_of_equal_cost(variant: Variant, num_frames: int, size: int) -> int:
    """The frames at which the variant costs what the temporal layout does at so many."""
    ours, theirs = (ModelConfig.from_fields(_config(size, one)) for one in (Variant("temporal"), variant))
    multiply_adds = count_multiply_adds(None, ours, num_frames, (size, size))
    return frames_of_equal_cost(variant.architecture, theirs, num_frames, (size, size), multiply_adds)


@cache
def _image_config(size: int, transformer: Transformer) -> ModelConfig:
    with as_file(STILLS) as stills:
        config = arm(str(stills), num_classes=2, size=64).config
    if transformer == "vit_tiny":  # of the same kind
        config = replace(config, patch_size=16, width=192, depth=12, heads=3)
    return replace(config, image_size=(size, size))


def model_config(cell: Cell, classes: int) -> ModelConfig:
    """The architecture of a cell with a head for so many classes."""
    return ModelConfig.from_fields({**cell.model, "num_classes": classes})


@dataclass(frozen=True)
class Result:
    """What came of a cell."""

    cell: Cell
    labels: tuple[str, ...]
    right: tuple[int, ...]  # the right class of each test video, in the order of the rows
    answers: tuple[int, ...]  # the class that the model gives each of them
    shuffled: tuple[int, ...]  # the same with the frames of the video in another order
    parameters: int
    multiply_adds: int  # of all views of a video
    seconds: float  # of training and test
    machine: str  # with versions

    @property
    def correct(self) -> np.ndarray:
        """(videos), bool."""
        return np.array(self.answers) == np.array(self.right)

    @property
    def correct_shuffled(self) -> np.ndarray:
        """(videos), bool."""
        return np.array(self.shuffled) == np.array(self.right)


@dataclass(frozen=True)
class Results:
    """The folder of finished cells: DIGEST.json of each, and a lock file of each that was begun."""

    folder: Path
    _read: dict[str, Result] = field(default_factory=dict, repr=False, compare=False)

    def path(self, cell: Cell) -> Path:
        return self.folder / f"{cell.digest}.json"

    def lock(self, cell: Cell) -> FileLock:
        """Held while a cell is under way. The system frees it when its process ends, however that ends."""
        return FileLock(self.folder / f".{cell.digest}.lock")

    def find(self, cell: Cell) -> Result | None:
        """The result of exactly this cell. Raises CheckpointError for a file that is none."""
        if cell.digest not in self._read and self.path(cell).is_file():
            self._read[cell.digest] = load_result(self.path(cell))
        return self._read.get(cell.digest)

    def add(self, result: Result) -> None:
        """Write a result, whole or not at all."""
        write_text(self.path(result.cell), json.dumps(asdict(result), separators=(",", ":")) + "\n")

    def others(self, wanted: Sequence[Cell]) -> int:
        """How many results are of other versions, recipes or videos than these cells."""
        digests = {cell.digest for cell in wanted}
        return sum(path.stem not in digests for path in self.folder.glob("*.json"))

    def rows_of(self, data: str) -> str:
        """The videos that this version measured a data set on; "" if there are none, or of several."""
        cells = [_read_json(path).get("cell", {}) for path in self.folder.glob("*.json")]
        current = [cell for cell in cells if (cell.get("protocol"), cell.get("version")) == (PROTOCOL, __version__)]
        found = {cell.get("rows", "") for cell in current if cell.get("data") == data}
        return found.pop() if len(found) == 1 else ""


def load_result(path: Path) -> Result:
    """Raises CheckpointError for a file that is no result, or whose name is not its digest."""
    fields = _read_json(path)
    try:
        result = Result(**{**{name: _tuple(value) for name, value in fields.items()}, "cell": Cell(**fields["cell"])})
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: not a result of evidence ({error}); delete it, and run again") from None
    if result.cell.digest != path.stem:
        raise CheckpointError(f"{path}: its recipe has the digest {result.cell.digest}; delete it, and run again")
    return result


def _read_json(path: Path) -> dict[str, Any]:
    try:
        fields = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as a result ({error}); delete it, and run again") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("cell"), dict):
        raise CheckpointError(f"{path}: not a result of evidence; delete it, and run again")
    return fields


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


@dataclass(frozen=True)
class Plan:
    """The cells of claims on data sets, by variant."""

    claims: tuple[Claim, ...]
    data: Mapping[str, DataSet]
    rows: Mapping[str, str]  # of each data set: `Sources.digest`, or what the results say; "" if nobody knows
    seeds: tuple[int, ...] = SEEDS
    quick: bool = False

    def tables(self) -> Iterator[tuple[Claim, DataSet]]:
        for claim in self.claims:
            for data in self.data.values():
                if data.kind in claim.kinds and data.name not in claim.without:
                    yield claim, data

    def cells(self, variant: Variant, data: DataSet) -> dict[int, list[Cell]]:
        """By seed, the cells of all folds."""
        rows = self.rows[data.name]
        return {seed: cells_of(variant, data, rows, seed=seed, quick=self.quick) for seed in self.seeds}

    def all(self) -> list[Cell]:
        """Every cell once: seed by seed, so that what is stopped early has whole tables."""
        found: dict[str, Cell] = {}
        for seed in self.seeds:
            for claim, data in self.tables():
                for variant in claim.rows:
                    cells = cells_of(variant, data, self.rows[data.name], seed=seed, quick=self.quick)
                    found |= {cell.digest: cell for cell in cells}
        return list(found.values())


def views(cell: Cell) -> Views:
    """Of a test video."""
    return Views(clips=cell.recipe.get("clips", 1))

"""Fine-tuning in one call, for a notebook."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console

from uniformerv2.data.annotations import class_names
from uniformerv2.data.sources import read_annotations
from uniformerv2.device import pick_device
from uniformerv2.errors import RecipeError
from uniformerv2.measuring.metrics import Evaluation
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.predict import Prediction, Predictor
from uniformerv2.tasks.batch_size import find_batch_size
from uniformerv2.tasks.classification.training import train_classifier
from uniformerv2.train.recipe import Recipe
from uniformerv2.train.recipes import find_recipe
from uniformerv2.train.run_folder import RunFolder

SIZES = (("small", 1_000), ("medium", 100_000))  # videos below which a recipe for data of one's own is of that size
SAVE_EVERY = 60.0  # seconds: who interrupts a cell has watched what would be lost


@dataclass(frozen=True)
class FineTuned:
    """A model that was fine-tuned, and how good it is."""

    predictor: Predictor  # of the model after the last epoch
    evaluation: Evaluation  # of that model, on the held-out videos
    recipe: Recipe  # that was run
    run: Path  # folder with checkpoints, curves and the split (docs/training.md)

    @property
    def model(self) -> UniFormerV2:
        """In eval mode, on the device that computed."""
        return self.predictor.model

    def predict(self, video: str | Path | bytes, *, top_k: int | None = 5) -> Prediction:
        """Rank the classes for one video; see `Predictor.predict`."""
        return self.predictor.predict(video, top_k=top_k)

    def __repr__(self) -> str:
        measured = self.evaluation
        return (
            f"FineTuned({measured.correct} of {len(measured.videos)} held-out videos right ({measured.top1:.1%}), "
            f"{len(self.model.labels)} classes, run {str(self.run)!r})"
        )


def fine_tune(
    data: str | Path,
    *,
    arm: str | Path | None = None,
    checkpoint: str | Path | None = None,
    recipe: str | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    holdout: float = 0.2,
    holdout_list: str | Path | None = None,
    workers: int = 2,
    device: str = "auto",
    **changes: Any,
) -> FineTuned:
    """Fine-tune a video classifier on data of one's own, with what suits their number.

    Without a recipe it is one of those for data of one's own (docs/recipes.md): by the number of videos small, medium
    or large, by the name of the image transformer from CLIP, DINOv2 or a supervised one. On a GPU, a batch that does
    not fit into its memory is divided. An interrupted run can be resumed.

    Args:
        data: a folder with one folder per class, or a manifest.
        arm: image transformer to start from; default: that of the recipe.
        checkpoint: video model to start from instead.
        recipe: name of the recipe; it is printed.
        output: folder of the run; default: named after the data, a new one each time.
        resume: go on with the run in `output`; the other arguments are those of then.
        holdout: share of each class's files that is held out to measure on.
        holdout_list: file with a path or pattern per line that says what is held out instead.
        workers: processes that read videos.
        device: "auto" (a GPU where there is one), or a name that torch knows.
        changes: other values of fields of the recipe: `epochs=5, lr=1e-4, flip=False`. If none is given, the learning
            rate follows the batch size and the warm-up the epochs.

    Raises:
        RecipeError: a field that no recipe has (the message has the nearest), impossible values, or a folder that must
            not be touched.
        UniFormerV2Error: as `train_classifier`.
        KeyboardInterrupt: as it came, after a line that says how to go on.
    """
    if resume and output is None:
        raise RecipeError("resume needs the folder of the run: give output")
    console = Console()
    annotations = read_annotations(Path(data))
    classes = class_names(annotations, minimum=2)
    starts = {name: str(value) for name, value in (("arm", arm), ("checkpoint", checkpoint)) if value is not None}
    name = recipe or f"own-{_size(len(annotations))}-{_kind(arm, checkpoint)}"
    chosen = _varied(find_recipe(name).recipe, starts, changes)
    folder = Path(output) if output is not None else _new_folder(Path(data))
    _say(console, f"{len(annotations)} videos of {len(classes)} classes: recipe {name}, run folder {folder}")
    RunFolder(folder).check(resume=resume, overwrite=False)
    chosen = _dividing_as(folder, chosen) if resume else _fitting(chosen, len(classes), device, console)
    try:
        result = train_classifier(
            data,
            folder,
            chosen,
            holdout=holdout,
            holdout_list=holdout_list,
            resume=resume,
            workers=workers,
            device=device,
            console=console,
            save_every=SAVE_EVERY,
        )
    except KeyboardInterrupt:
        if RunFolder(folder).recipe.is_file():
            _say(console, f'interrupted; go on with the same call and output="{folder}", resume=True')
        raise
    predictor = Predictor(result.last, device=device, views=chosen.evaluation.views)
    return FineTuned(predictor, result.evaluation, chosen, folder)


def _size(videos: int) -> str:
    return next((size for size, limit in SIZES if videos < limit), "large")


def _kind(arm: str | Path | None, checkpoint: str | Path | None) -> str:
    """Which of the starts: those of a family bear the same learning rates. Published video models began as CLIP."""
    if checkpoint is not None:
        return "clip"
    return next((kind for kind in ("clip", "dinov2") if kind in str(arm).lower()), "vit")


def _varied(recipe: Recipe, starts: Mapping[str, str], changes: Mapping[str, Any]) -> Recipe:
    """The recipe with another start and other values, and what follows from them."""
    before = recipe.optimization
    implied: dict[str, Any] = {}
    if "checkpoint" in starts:
        implied["post_norm"] = None  # as the checkpoint has it
    implied["lr_base_batch"] = None if "lr" in changes else before.lr_base_batch or before.batch_size
    if "epochs" in changes:
        implied["warmup_epochs"] = before.warmup_epochs * changes["epochs"] / before.epochs
    if changes.get("flip") is True:
        changes = {**changes, "flip": 0.5}  # the recipe has the probability
    return recipe.vary(**{**implied, **starts, **changes}).resolved()


def _new_folder(data: Path) -> Path:
    """In the current folder, named after the data; not there yet."""
    name = f"{data.resolve().stem}-run"
    names = (name if number == 1 else f"{name}{number}" for number in count(1))
    return next(folder for folder in map(Path, names) if not folder.exists())


def _fitting(recipe: Recipe, classes: int, device: str, console: Console) -> Recipe:
    """The recipe with its batch divided as a GPU's memory demands; without a GPU, trying would take too long."""
    if pick_device(device).type != "cuda" or recipe.optimization.accumulate > 1:
        return recipe
    sizes = find_batch_size(recipe, classes, device=device, largest=recipe.optimization.batch_size, console=console)
    return recipe.vary(accumulate=sizes.accumulate)


def _dividing_as(folder: Path, recipe: Recipe) -> Recipe:
    """The recipe with its batch divided as in the run that goes on, whatever memory is free now."""
    try:
        before = json.loads(RunFolder(folder).recipe.read_text(encoding="utf-8"))
        return recipe.vary(accumulate=before["optimization"]["accumulate"])
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{folder}: its recipe.json is not the recipe of a run; start another run") from error


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)

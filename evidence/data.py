"""The data sets by name, the one recipe of each, and their videos with people kept apart."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from evidence.scenes import write_scenes
from uniformerv2 import Annotation, AnnotationError, RecipeError, VideoError, read_annotations
from uniformerv2.atomic import whole_folder
from uniformerv2.curation.pack import pack
from uniformerv2.demo.motions import MOTIONS, write_dataset

# what tells the classes apart; part: a part of another set, for the claim on merged sets alone
Kind = Literal["motion", "appearance", "unknown", "part"]

# the image transformer that `train` starts from unless another is named: ViT-Ti with the labels of ImageNet
VIT_TINY = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"

DRAWN = {"train_clips": 100, "held_out_clips": 25}  # of each class
DRAWING = 2  # another number for another drawing: results are not mixed
PACKED_SIDE = 80  # pixels at least of the short side that real videos are packed with
MIN_TEST_VIDEOS = 10  # of all folds together; intervals over fewer say nothing

TRANSITIONS = ("sit_down", "lie_down", "fall", "stand_up_from_sitting", "stand_up_from_lying", "stand_up_from_fall")
ROOM_STATES = ("walk", "move_about", "sit", "lie", "lie_after_fall")

SHARED: dict[str, Any] = {  # fields of `uniformerv2.Recipe`: the same for every data set
    "size": 64, "num_frames": 8, "batch_size": 16, "lr": 3e-4, "warmup_epochs": 1.0, "label_smoothing": 0.0,
    "clip_norm": 1.0, "precision": "fp32", "compile": False, "crop_area": (0.6, 1.0), "num_ops": 0, "flip": 0.0,
    "repeats": 2,  # an epoch has each video twice, decoded once: what an epoch costs is half decoding
}  # fmt: skip


@dataclass(frozen=True)
class DataSet:
    """A set of videos, how it is split, and the one recipe that all its cells are trained with."""

    name: str
    about: str
    kind: Kind
    recipe: Mapping[str, Any] = field(default_factory=dict)  # what differs from `SHARED`
    quick_epochs: int = 2
    own_epochs: int | None = None  # of the recipes for data of one's own, where theirs would take too long
    folds: int = 0  # 0: the split column; else people are dealt to so many folds, each left out in turn
    labels: tuple[str, ...] = ()  # only these classes; (): all
    reversals: str = ""  # pairs of classes that are each other played backwards, as `Augmentation.reverse_labels`
    group_column: str = ""  # of the manifest: who is to be seen
    group_pattern: str = ""  # or found in the name of the file, its first group
    source: str = ""  # the name under which its manifest is given, where it is not the set's own
    draw: Callable[..., Path] | None = None

    @property
    def given_as(self) -> str:
        return self.source or self.name

    @property
    def fold_count(self) -> int:
        return self.folds or 1


# of the twelve motions eight each, so that every clip is in two of three sets
PARTS = {"motions_a": MOTIONS[:8], "motions_b": MOTIONS[4:], "motions_c": MOTIONS[:4] + MOTIONS[8:]}
_AS_THEY_ARE = {"lr": 7e-4, "epochs": 3, "warmup_epochs": 0.3, "crop_area": (1.0, 1.0), "crop_aspect": (1.0, 1.0)}
DATA_SETS: dict[str, DataSet] = {
    one.name: one
    for one in (
        DataSet(
            "motions", "drawn: twelve motions in pairs that are each other's time reversal", "motion",
            _AS_THEY_ARE, quick_epochs=1, group_pattern=r"(\d+)\.mp4$", draw=write_dataset,
        ),
        DataSet(
            "scenes", "drawn: eight textures behind things that move at random", "appearance",
            _AS_THEY_ARE | {"epochs": 2}, quick_epochs=1, draw=write_scenes,
        ),
        DataSet(
            "room_transitions", "a room from above: sitting down, lying down, falling, and getting up from each",
            "motion", {"num_frames": 16, "epochs": 20, "flip": 0.5}, quick_epochs=6, folds=5, labels=TRANSITIONS,
            reversals=";".join(map(",".join, zip(TRANSITIONS[:3], TRANSITIONS[3:], strict=True))),
            group_column="person", source="room_actions",
        ),
        DataSet(
            "room_actions", "a room from above: eleven actions and states, mostly told by poses", "appearance",
            {"epochs": 8, "flip": 0.5}, quick_epochs=3, labels=(*TRANSITIONS, *ROOM_STATES), group_column="person",
        ),
        DataSet(
            "miracl_lips", "mouths saying ten words, speakers unseen in training", "motion",
            {"epochs": 4}, quick_epochs=2, own_epochs=5, group_pattern=r"^([FM]\d+)_",
        ),
        DataSet(
            "weizmann", "ten actions of nine people, told by poses", "appearance",
            {"epochs": 10, "flip": 0.5}, quick_epochs=4, folds=3, group_pattern=r"^([a-z]+)_",
        ),
        *(
            DataSet(
                name, "drawn: eight of the twelve motions", "part", _AS_THEY_ARE, quick_epochs=1, labels=labels,
                group_pattern=r"(\d+)\.mp4$", source="motions", draw=write_dataset,
            )
            for name, labels in PARTS.items()
        ),
    )
}  # fmt: skip


def own_data_set(name: str) -> DataSet:
    """A set that only the user knows: by its split column, else five folds of its groups."""
    return DataSet(name, "given with --data", "unknown", {"epochs": 10}, quick_epochs=2)


@dataclass(frozen=True)
class Sources:
    """Where data sets are: a manifest or folder for each name that is given, a cache for what is drawn."""

    given: Mapping[str, Path]
    cache: Path
    vit_tiny: str = VIT_TINY  # a file, or its repository on the hub
    drawn: Mapping[str, int] = field(default_factory=lambda: DRAWN)  # clips of each class of a drawn set

    @classmethod
    def find(cls, given: Mapping[str, Path], cache: Path) -> Sources:
        """With what the environment names: EVIDENCE_WEIZMANN=MANIFEST, for each set that is not drawn."""
        names = {one.given_as for one in DATA_SETS.values() if one.draw is None}
        variables = {name: os.environ.get(f"EVIDENCE_{name.upper()}") for name in names}
        paths = {name: Path(path) for name, path in variables.items() if path} | dict(given)
        return cls(paths, cache, os.environ.get("EVIDENCE_VIT_TINY", VIT_TINY))

    def __contains__(self, data: DataSet) -> bool:
        return data.draw is not None or data.given_as in self.given

    def rows(self, data: DataSet) -> list[Annotation]:
        """The videos of a data set as they were given, or drawn, now where that was not done before.

        Raises:
            AnnotationError: it is not there, or has not what it needs.
        """
        if data.draw is not None:
            return _grouped(data, self._drawn(data))
        if data.given_as not in self.given:
            raise AnnotationError(
                f"{data.name}: not here; name its manifest or folder with --data {data.given_as}=PATH or "
                f"EVIDENCE_{data.given_as.upper()}"
            )
        return _grouped(data, self.given[data.given_as])

    def small_rows(self, data: DataSet, size: int) -> list[Annotation]:
        """The same rows of small videos that are read fast: drawn, or packed, now where that was not done before.

        Args:
            data: which set.
            size: pixels of its clips; 60 % to all of a packed picture become so many.

        Raises:
            VideoError: one of them cannot be read.
        """
        given = self.rows(data)
        if data.draw is not None:
            return given
        everything = read_annotations(self.given[data.given_as])
        side = max(PACKED_SIDE, round(1.25 * size))
        folder = self.cache / f"{data.given_as}-{side}-{_digest(everything)}"
        self.cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            report = pack(self.given[data.given_as], folder, short_side=side, progress=True)
        if report.unreadable:
            raise VideoError(
                f"{report.unreadable[0].path}: {report.unreadable[0].reason}; a table needs all its videos"
            )
        return _grouped(data, report.manifest)

    def _drawn(self, data: DataSet) -> Path:
        assert data.draw is not None
        folder = self.cache / f"{data.given_as}-{DRAWING}-{self.drawn['train_clips']}-{self.drawn['held_out_clips']}"
        self.cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                with whole_folder(folder) as partial:
                    data.draw(partial, **self.drawn, progress=True)
        return folder / "manifest.csv"

    def digest(self, data: DataSet) -> str:
        """What is measured on: of the rows and the sizes of their files; of a drawn set, how it is drawn."""
        if data.draw is not None:
            return f"drawing {DRAWING}, {self.drawn['train_clips']} + {self.drawn['held_out_clips']}"
        rows = self.rows(data)
        return f"{len(rows)} rows {_digest(rows)}"


def _digest(rows: Sequence[Annotation]) -> str:
    root = os.path.commonpath([row.path.parent for row in rows])
    lines = [
        [os.path.relpath(row.path, root), row.label, row.interval, row.split, row.group, row.path.stat().st_size]
        for row in rows
    ]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:12]


def _grouped(data: DataSet, manifest: Path) -> list[Annotation]:
    """The rows of the classes that are wanted, each with who is to be seen."""
    rows = read_annotations(manifest)
    if data.group_column:
        people = _column(manifest, data.group_column)
        rows = [replace(row, group=people.get(os.path.abspath(row.path)) or row.group) for row in rows]
    elif data.group_pattern:
        found = [re.search(data.group_pattern, row.path.name) for row in rows]
        rows = [replace(row, group=match[1] if match else row.group) for row, match in zip(rows, found, strict=True)]
    if data.labels and (lacking := sorted(set(data.labels) - {row.label for row in rows})):
        raise AnnotationError(f"{manifest}: no video of class {', '.join(lacking)}, which {data.name} needs")
    return [row for row in rows if not data.labels or row.label in data.labels]


def _column(manifest: Path, column: str) -> dict[str, str]:
    """The values of a column that the package's reader does not know, by the path of the file."""
    if manifest.is_dir():
        raise AnnotationError(f"{manifest}: a folder, and the column {column} is needed; give its manifest")
    with manifest.open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    if not table or not {"path", column} <= table[0].keys():
        raise AnnotationError(
            f"{manifest}: no columns path and {column}; it has {', '.join(table[0] if table else ())}"
        )
    return {os.path.abspath(manifest.parent / row["path"]): row[column] for row in table}


def split_into_folds(data: DataSet, rows: Sequence[Annotation]) -> list[list[Annotation]]:
    """The rows once for each fold, with their sides of it in `split`: train or test.

    Raises:
        AnnotationError: too few videos or people, a person on both sides, or a class that only one side has.
    """
    if data.folds:
        people = sorted({row.group for row in rows if row.group})
        if len(people) < data.folds or any(not row.group for row in rows):
            raise AnnotationError(
                f"{data.name}: {len(people)} people are named for {len(rows)} videos, and {data.folds} folds need at "
                f"least {data.folds} and a name for each video; see the column {data.group_column or 'group'}"
            )
        fold_of = {person: number % data.folds for number, person in enumerate(people)}
        sides = [[fold_of[row.group or ""] == fold for row in rows] for fold in range(data.folds)]
    else:
        if any(row.split is None for row in rows):
            raise AnnotationError(f"{data.name}: needs a split, train or test, in every row; give a manifest with one")
        sides = [[row.split != "train" for row in rows]]
    folds = [
        [replace(row, split="test" if held else "train") for row, held in zip(rows, side, strict=True)]
        for side in sides
    ]
    for rows_of_fold in folds:
        _check_fold(data.name, rows_of_fold)
    tested = sum(row.split == "test" for fold in folds for row in fold)
    if tested < MIN_TEST_VIDEOS:
        raise AnnotationError(f"{data.name}: {tested} test videos; intervals need at least {MIN_TEST_VIDEOS}")
    return folds


def _check_fold(name: str, rows: Sequence[Annotation]) -> None:
    labels, people = ({side: Counter[Any]() for side in ("train", "test")} for _ in range(2))
    for row in rows:
        labels[str(row.split)][row.label] += 1
        people[str(row.split)][row.group] += bool(row.group)
    if both := sorted(set(+people["train"]) & set(+people["test"])):
        raise AnnotationError(f"{name}: {', '.join(both[:3])} on both sides of the split; keep people apart")
    if len(labels["train"]) < 2:
        raise AnnotationError(f"{name}: {len(labels['train'])} classes to train on, at least 2 are needed")
    if unseen := sorted(labels["test"].keys() - labels["train"].keys()):
        raise AnnotationError(f"{name}: no video to train on of class {', '.join(unseen)}; more videos or people")


def find_data_sets(names: Sequence[str]) -> dict[str, DataSet]:
    """The known ones, and those that only the user knows, by name. Raises RecipeError for a name that cannot be one."""
    known = {one.given_as for one in DATA_SETS.values()}
    for name in names:
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise RecipeError(f"--data {name}: a name has small letters, digits and _")
        if name in DATA_SETS and DATA_SETS[name].draw is not None:
            raise RecipeError(f"--data {name}: this set is drawn; choose another name")
    return DATA_SETS | {name: own_data_set(name) for name in names if name not in known}

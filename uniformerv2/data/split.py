"""Which rows are trained on, and which are held out."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from uniformerv2.data.annotations import Annotation
from uniformerv2.errors import AnnotationError, RecipeError

HOLDOUT = 0.2  # share of each class's files, where no other is given


def split_annotations(
    annotations: Sequence[Annotation],
    *,
    holdout: float | None = None,
    holdout_list: Path | None = None,
    seed: int = 0,
) -> tuple[list[Annotation], list[Annotation]]:
    """Divide into training rows and held-out rows. All rows of a file stay together.

    The first of these that is given decides:

    1. `holdout_list`, a text file with one path or glob pattern a line ('#' starts a comment), compared
       with the end of each path: `wave/anna.mp4`, `anna.mp4`, `anna_*` and `wave/*` are all fine;
    2. the split column: `train` is trained on, `val` and `test` are held out;
    3. `holdout`, a share of the files of each class, drawn with `seed`: at least one where there are two,
       and never all.

    Args:
        annotations: as read.
        holdout: in [0, 1); 0: nothing is held out; None: `HOLDOUT`, or nothing where that cannot be drawn, as when no
            class has two files, or one film has all classes.
        holdout_list: see above.
        seed: an equal seed and equal file names give an equal division, whatever their order and folder.

    Returns:
        (training, held out), each in the given order. Held out may be empty, unless a list or a share was given.

    Raises:
        AnnotationError: a pattern that matches nothing, rows without a split beside rows with one, nothing
            left to train on, nothing held out although it was asked for, or a class that is held out entirely.
        RecipeError: `holdout` out of range.
    """
    if holdout_list is not None:
        held_paths, origin = _listed_paths(annotations, holdout_list), str(holdout_list)
    elif any(annotation.split for annotation in annotations):
        held_paths, origin = _split_column_paths(annotations), "the split column"
    elif holdout == 0:
        return list(annotations), []
    else:
        drawn = _drawn_paths(annotations, HOLDOUT if holdout is None else holdout, seed)
        held_paths, origin = _leaving_all_classes(annotations, drawn), f"a holdout of {holdout}"
    training = [annotation for annotation in annotations if annotation.path not in held_paths]
    held_out = [annotation for annotation in annotations if annotation.path in held_paths]
    if not training:
        raise AnnotationError(f"{origin} leaves nothing to train on of {len(annotations)} videos")
    if not held_out and holdout_list is not None:
        raise AnnotationError(f"{origin} leaves nothing held out of {len(annotations)} videos")
    if not held_out and holdout is not None and not any(row.split for row in annotations):
        raise AnnotationError(
            f"{origin} cannot be drawn from {len({row.path for row in annotations})} file(s): no class could spare "
            "one; a holdout of 0 trains on everything"
        )
    unseen = sorted({row.label for row in held_out} - {row.label for row in training})
    if unseen:
        raise AnnotationError(f"{origin} leaves no video to train on of class {', '.join(map(repr, unseen))}")
    return training, held_out


def _listed_paths(annotations: Sequence[Annotation], holdout_list: Path) -> set[Path]:
    try:
        lines = Path(holdout_list).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(f"{holdout_list}: cannot be read as a list of held-out videos: {error}") from error
    paths = {annotation.path for annotation in annotations}
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        by_name[path.name].append(path)
    held: set[Path] = set()
    for number, line in enumerate(lines, start=1):
        pattern = re.split(r"(?:^|\s)#", line)[0].strip()
        if not pattern:
            continue
        parts = PurePosixPath(pattern).parts  # as it stands first: a name may hold brackets
        matches = [path for path in by_name[parts[-1]] if path.parts[-len(parts) :] == parts]
        if not matches and any(character in pattern for character in "*?["):
            matches = [path for path in paths if path.match(pattern)]
        if not matches:
            raise AnnotationError(f"{holdout_list}, line {number}: {pattern!r} matches none of {len(paths)} videos")
        held.update(matches)
    return held


def _split_column_paths(annotations: Sequence[Annotation]) -> set[Path]:
    sides: dict[Path, bool] = {}
    for row in annotations:
        if row.split is None:
            raise AnnotationError(f"{row.path}: empty split, where other rows have one; fill it in or drop the column")
        if sides.setdefault(row.path, row.split != "train") != (row.split != "train"):
            raise AnnotationError(f"{row.path}: both trained on and held out, by the split column")
    return {path for path, held in sides.items() if held}


def _leaving_all_classes(annotations: Sequence[Annotation], held: set[Path]) -> set[Path]:
    """The files without those that have the only rows of a class: a file's rows stay together."""
    trained = {row.label for row in annotations if row.path not in held}
    return held - {row.path for row in annotations if row.label not in trained}


def _drawn_paths(annotations: Sequence[Annotation], holdout: float, seed: int) -> set[Path]:
    if not 0 < holdout < 1:
        raise RecipeError(f"holdout must lie between 0 and 1, got {holdout}")
    label_of = {row.path: row.label for row in reversed(annotations)}  # of a file with several labels, the first
    files: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(label_of):
        files[label_of[path]].append(path)
    held: set[Path] = set()
    for label, paths in files.items():
        count = min(max(1, round(holdout * len(paths))), len(paths) - 1)
        held.update(random.Random(f"{seed} {label}").sample(paths, count))
    return held

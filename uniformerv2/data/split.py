"""Which rows are trained on, and which are held out."""

from __future__ import annotations

import random
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path, PurePosixPath

from uniformerv2.data.annotations import Annotation, check_labels
from uniformerv2.data.content import same_content, same_files
from uniformerv2.data.tables import relative_to
from uniformerv2.errors import AnnotationError, RecipeError
from uniformerv2.text import normalised

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
       and never all. Files of the same content count as one, and where rows name their groups, whole groups are
       held out, as near to that share as they allow; likewise files, where some have several labels.

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
        held_paths = _drawn_paths(annotations, HOLDOUT if holdout is None else holdout, seed)
        origin = f"a holdout of {holdout}"
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
    unseen = sorted({label for row in held_out for label in row.labels} - {*chain(*(row.labels for row in training))})
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
        by_name[normalised(path.name)].append(path)
    held: set[Path] = set()
    for number, line in enumerate(lines, start=1):
        pattern = re.split(r"(?:^|\s)#", line)[0].strip()
        if not pattern:
            continue
        parts = PurePosixPath(normalised(pattern)).parts  # as it stands first: a name may hold brackets
        matches = [path for path in by_name[parts[-1]] if tuple(map(normalised, path.parts))[-len(parts) :] == parts]
        if not matches and any(character in pattern for character in "*?["):
            matches = [path for path in paths if Path(normalised(str(path))).match(normalised(pattern))]
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


def _drawn_paths(annotations: Sequence[Annotation], holdout: float, seed: int) -> set[Path]:
    if not 0 < holdout < 1:
        raise RecipeError(f"holdout must lie between 0 and 1, got {holdout}")
    paths = sorted({row.path for row in annotations})
    check_labels(annotations, lambda number: str(annotations[number].path), same_files(paths))
    originals = same_content(paths)
    _tell_copies(annotations, originals)
    # of rows of one file with different labels, the first; "" is none
    labels_of = {originals[row.path]: (row.label, *row.other_labels) for row in reversed(annotations)}
    grouped, several = (any(getattr(row, name) for row in annotations) for name in ("group", "other_labels"))
    if grouped or several:
        source_of = _sources(annotations, originals)
        held = _drawn_sources(source_of, labels_of, holdout, seed)
    else:
        source_of = dict(zip(labels_of, labels_of, strict=True))
        held = _drawn_files({file: labels[0] for file, labels in labels_of.items()}, holdout, seed)
    trained = {label for row in annotations if originals[row.path] not in held for label in row.labels}
    only = {source_of[originals[row.path]] for row in annotations if not trained.issuperset(row.labels)}  # have a class
    return {path for path, original in originals.items() if original in held and source_of[original] not in only}


def _tell_copies(annotations: Sequence[Annotation], originals: Mapping[Path, Path]) -> None:
    copies = [path for path, original in originals.items() if path != original]
    if not copies:
        return
    labels = {row.path: {*row.labels} for row in annotations}
    other = [path for path in copies if labels[path] != labels[originals[path]]]
    path = (other or copies)[0]
    warnings.warn(
        f"{len(copies)} of {len(originals)} files have the content of another file, {len(other)} of them under another "
        f"label, such as {path} that of {originals[path]}; copies are kept on one side of the split",
        stacklevel=1,
    )


def _drawn_files(label_of: Mapping[Path, str], holdout: float, seed: int) -> set[Path]:
    """A share of the files of each class."""
    files: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(label_of):
        files[label_of[path]].append(path)
    held: set[Path] = set()
    for label, paths in files.items():
        count = min(max(1, round(holdout * len(paths))), len(paths) - 1)
        held.update(random.Random(f"{seed} {label}").sample(paths, count))
    return held


def _drawn_sources(
    source_of: Mapping[Path, Hashable], labels_of: Mapping[Path, Sequence[str]], holdout: float, seed: int
) -> set[Path]:
    """Whole sources, as near to the share of each class as they allow. Tells of classes of which none is held out.

    A source is the files of a group, and of all groups that a file of it belongs to. In an order that is drawn, a
    source is held out where that brings the shares closer, and where it leaves files of each class to train on.
    """
    members: dict[Hashable, list[Path]] = defaultdict(list)
    for path in sorted(source_of):
        members[source_of[path]].append(path)
    sources = [(files, Counter(label for path in files for label in labels_of[path])) for files in members.values()]
    random.Random(f"{seed} sources").shuffle(sources)
    total = Counter(label for labels in labels_of.values() for label in labels)
    held: Counter[str] = Counter()
    held_files: set[Path] = set()

    def farther(counts: Mapping[str, int]) -> float:
        """How much farther from the wanted share all classes are with this source."""
        missing = {label: holdout - held[label] / total[label] for label in counts}
        return sum((missing[label] - n / total[label]) ** 2 - missing[label] ** 2 for label, n in counts.items())

    def possible(counts: Mapping[str, int]) -> bool:
        return all(held[label] + n < total[label] for label, n in counts.items())

    def hold_out(files: Sequence[Path], counts: Mapping[str, int]) -> None:
        held.update(counts)
        held_files.update(files)

    for files, counts in sources:
        if possible(counts) and farther(counts) < 0:
            hold_out(files, counts)
    for label in sorted(total):
        left = [one for one in sources if label in one[1] and possible(one[1])]
        if not held[label] and left:
            hold_out(*min(left, key=lambda one: farther(one[1])))
    if none := [label for label in sorted(total) if label and not held[label]]:
        warnings.warn(
            f"nothing is held out of class {', '.join(map(repr, none))}: its videos come from one source, or their "
            "sources are all that another class has",
            stacklevel=1,
        )
    return held_files


def _sources(annotations: Sequence[Annotation], originals: Mapping[Path, Path]) -> dict[Path, Hashable]:
    """What is the same for all files of a source, by file."""
    parent: dict[Hashable, Hashable] = {}

    def root(item: Hashable) -> Hashable:
        while (above := parent.setdefault(item, item)) != item:
            item = above
        return item

    for row in annotations:
        file = root(originals[row.path])
        if row.group:
            parent[file] = root(("group", row.group))
    return {path: root(path) for path in originals.values()}


def with_groups(annotations: Sequence[Annotation], pattern: str, root: str | Path) -> list[Annotation]:
    """The rows with the group that a regular expression finds in each path: its first group, or all that it matches.

    Args:
        annotations: as read; their own groups are replaced.
        pattern: searched for in the paths from `root`, with "/".
        root: a folder; paths outside it are absolute.

    Raises:
        RecipeError: no regular expression.
        AnnotationError: a path in which it finds nothing.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise RecipeError(f"group {pattern!r} is no regular expression: {error}") from None
    shorten = relative_to(root)
    groups: dict[Path, str] = {}
    for path in dict.fromkeys(row.path for row in annotations):
        match = expression.search(shorten(str(path)))
        if not match or not match[min(1, expression.groups)]:
            raise AnnotationError(f"{path}: group {pattern!r} matches nothing in {shorten(str(path))!r}")
        groups[path] = normalised(match[min(1, expression.groups)])
    return [replace(row, group=groups[row.path]) for row in annotations]

"""What is to be learned: which video shows what, read from folders or a manifest, and what of it is held out."""

from __future__ import annotations

import math
import random
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from sys import intern

from uniformerv2.data.manifest import MANIFEST_COLUMNS, read_rows
from uniformerv2.errors import AnnotationError, RecipeError
from uniformerv2.video.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Annotation:
    """One row: a video (a file or a folder of frame images), what it shows and, if only a part does, when."""

    path: Path
    label: str
    start: float | None = None  # seconds; None: from the beginning
    end: float | None = None  # seconds; None: to the end
    split: str | None = None  # "train", "val" or "test"


def read_annotations(source: str | Path, *, root: Path | None = None, must_exist: bool = True) -> list[Annotation]:
    """What the videos of a folder or a manifest show.

    A folder has one folder per class:

        actions/wave/anna.mp4           a video file, known by its suffix (`VIDEO_SUFFIXES`)
        actions/wave/office/ben.avi     deeper is fine
        actions/jump/carl/0001.jpg      a folder of images is one video

    Hidden files are skipped; files that are neither are ignored, with one warning that counts them.

    A manifest is a CSV file (UTF-8) or a Parquet file. Its first line names the columns, in any order:

        path,label,start,end,split
        wave/anna.mp4,wave,1.5,4,train

    `path` is relative to `root`; `start` and `end` are seconds and, like `split` (train, val or test),
    may be left out or empty. Other columns are ignored. A video may have several rows.

    Tar shards in the WebDataset convention carry their labels: see `shards.py`.

    Args:
        source: the folder, the manifest, a shard (.tar), a pattern of shards or a folder of them.
        root: what the paths of a manifest are relative to; by default the manifest's own folder.
        must_exist: whether a manifest may only name videos that are there.

    Returns:
        At least one annotation, in the order of the manifest or sorted by class and path.

    Raises:
        AnnotationError: nothing there, or a row that makes no sense; names the file and the line (row i of Parquet is
            line i + 1).
    """
    from uniformerv2.data.shards import is_shards, read_shards  # which stands on this module

    if is_shards(source):
        return read_shards(source)
    source = Path(source)
    if source.is_dir():
        return _read_folder(source)
    if not source.exists():
        raise AnnotationError(f"{source}: no such folder or manifest")
    return _read_manifest(source, source.parent if root is None else Path(root), must_exist)


def class_names(annotations: Sequence[Annotation], *, minimum: int = 1) -> list[str]:
    """The classes that occur, sorted.

    Raises:
        AnnotationError: fewer than `minimum` of them; training needs two.
    """
    names = sorted({annotation.label for annotation in annotations})
    if len(names) < minimum:
        example = f" in {annotations[0].path.parent}" if annotations else ""
        raise AnnotationError(
            f"found {len(names)} class(es) ({', '.join(names) or 'none'}){example}, but at least {minimum} are needed; "
            "give a folder with one folder per class, or a manifest with more than one label"
        )
    return names


def split_annotations(
    annotations: Sequence[Annotation], *, holdout: float = 0.2, holdout_list: Path | None = None, seed: int = 0
) -> tuple[list[Annotation], list[Annotation]]:
    """Divide into what is trained on and what is held out. All rows of one file stay together.

    The first of these that is there decides:

    1. `holdout_list`, a text file with one path or glob pattern a line ('#' starts a comment), compared
       with the end of each path: `wave/anna.mp4`, `anna.mp4`, `anna_*` and `wave/*` are all fine;
    2. the split column: `train` is trained on, `val` and `test` are held out;
    3. `holdout`, a share of the files of each class, drawn with `seed`: at least one where there are two,
       and never all.

    Args:
        annotations: as read.
        holdout: between 0 and 1, both excluded.
        holdout_list: see above.
        seed: an equal seed and equal file names give an equal division, whatever their order and folder.

    Returns:
        (training, held out), each in the given order and neither empty.

    Raises:
        AnnotationError: a pattern that matches nothing, rows without a split beside rows with one, nothing
            left on one side, or a class that is held out entirely.
        RecipeError: `holdout` out of range.
    """
    if holdout_list is not None:
        held_paths, origin = _listed_paths(annotations, holdout_list), str(holdout_list)
    elif any(annotation.split for annotation in annotations):
        held_paths, origin = _split_column_paths(annotations), "the split column"
    else:
        held_paths, origin = _drawn_paths(annotations, holdout, seed), f"a holdout of {holdout}"
    training = [annotation for annotation in annotations if annotation.path not in held_paths]
    held_out = [annotation for annotation in annotations if annotation.path in held_paths]
    for rows, what in ((training, "to train on"), (held_out, "held out")):
        if not rows:
            raise AnnotationError(f"{origin} leaves nothing {what} of {len(annotations)} videos")
    unseen = sorted({row.label for row in held_out} - {row.label for row in training})
    if unseen:
        raise AnnotationError(f"{origin} leaves no video to train on of class {', '.join(map(repr, unseen))}")
    return training, held_out


def _read_folder(folder: Path) -> list[Annotation]:
    annotations: list[Annotation] = []
    ignored: list[Path] = []
    classes = [child for child in _visible(folder) if child.is_dir()]
    if not classes:
        raise AnnotationError(f"{folder}: no class folders in it; expected {folder}/CLASS/VIDEO")
    for class_folder in classes:
        videos = sorted(_videos_below(class_folder, ignored))
        if not videos:
            raise AnnotationError(f"{class_folder}: no video in this class folder; add some or remove the folder")
        annotations += [Annotation(video, class_folder.name) for video in videos]
    if ignored:
        warnings.warn(
            f"{folder}: ignored {len(ignored)} file(s) that are no videos, such as {ignored[0]}", stacklevel=3
        )
    return annotations


def _visible(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if not child.name.startswith("."))


def _videos_below(folder: Path, ignored: list[Path]) -> Iterator[Path]:
    for child in _visible(folder):
        if child.is_dir() and _holds_frames(child):
            yield child
        elif child.is_dir():
            yield from _videos_below(child, ignored)
        elif child.suffix.lower() in VIDEO_SUFFIXES:
            yield child
        else:
            ignored.append(child)


def _holds_frames(folder: Path) -> bool:
    suffixes = {child.suffix.lower() for child in _visible(folder)}
    return not suffixes.isdisjoint(IMAGE_SUFFIXES) and suffixes.isdisjoint(VIDEO_SUFFIXES)


def _read_manifest(manifest: Path, root: Path, must_exist: bool) -> list[Annotation]:
    from uniformerv2.data.shards import is_member

    annotations = [annotation for _, annotation in manifest_rows(manifest, root)]
    if not annotations:
        raise AnnotationError(f"{manifest}: no rows below the line of column names")
    paths = dict.fromkeys(annotation.path for annotation in annotations) if must_exist else ()
    missing = [str(path) for path in paths if not path.exists() and not is_member(path)]
    if missing:
        more = ", ..." if len(missing) > 3 else ""
        raise AnnotationError(
            f"{manifest}: {len(missing)} of its videos do not exist: {', '.join(missing[:3])}{more}; "
            f"paths are relative to {root}"
        )
    return annotations


def manifest_rows(manifest: Path, root: Path) -> Iterator[tuple[int, Annotation]]:
    """Rows of a manifest with their line numbers, before anyone looked whether the videos are there.

    Raises:
        AnnotationError: a row that makes no sense; names the file and the line.
    """
    rows = read_rows(manifest)
    columns = _column_names(manifest, next(rows, (1, []))[1])
    places = [columns.index(name) if name in columns else None for name in MANIFEST_COLUMNS]
    paths: dict[str, Path] = {}  # rows of one file share its path, and rows of one class its label
    for line, cells in rows:
        try:
            values = _row_values(cells, len(columns), places)
            path = paths.get(values[0]) or paths.setdefault(values[0], root / values[0])
            annotation = _parse_row(path, *values)
        except AnnotationError as error:
            raise AnnotationError(f"{manifest}, line {line}: {error}") from None
        yield line, annotation


def _column_names(manifest: Path, cells: list[str]) -> list[str]:
    columns = [cell.strip() for cell in cells]
    missing = [column for column in ("path", "label") if column not in columns]
    if missing:
        found = ", ".join(columns) or "nothing"
        raise AnnotationError(
            f"{manifest}: line 1 must name the columns path,label[,start,end][,split] separated by commas; "
            f"{' and '.join(missing)} missing, found {found[:200]}"
        )
    return columns


def _row_values(cells: list[str], width: int, places: Sequence[int | None]) -> list[str]:
    if len(cells) > width:
        raise AnnotationError("more values than columns; put a path or label with a comma in double quotes")
    cells += [""] * (width - len(cells))
    return ["" if place is None else cells[place].strip() for place in places]


def _parse_row(path: Path, written: str, label: str, start: str, end: str, split: str) -> Annotation:
    for column, value in (("path", written), ("label", label)):
        if not value:
            raise AnnotationError(f"empty {column}")
    interval = parse_interval(start, end)
    part = split.lower() or None
    if part not in (None, *SPLITS):
        raise AnnotationError(f"split is {split!r}; it must be {', '.join(SPLITS)} or empty")
    return Annotation(path, intern(label), *interval, part)


def parse_interval(start: str, end: str) -> tuple[float | None, float | None]:
    """Seconds out of text; None for what is empty.

    Raises:
        AnnotationError: no numbers, negative, or nothing between them; the message lacks file and line.
    """
    if not start and not end:
        return None, None
    first, last = _parse_seconds(start, "start"), _parse_seconds(end, "end")
    if last is not None and last <= (first or 0):
        raise AnnotationError(f"the interval from {first or 0:g} s to {last:g} s is empty; end must be larger")
    return first, last


def _parse_seconds(text: str, column: str) -> float | None:
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        raise AnnotationError(f"{column} is {text!r}; it must be a number of seconds or empty") from None
    if not math.isfinite(seconds) or seconds < 0:
        raise AnnotationError(f"{column} is {text}; it must be 0 or more seconds")
    return seconds


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

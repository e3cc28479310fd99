"""The videos of a manifest encoded again for training, and a manifest of them with the same rows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

from uniformerv2.atomic import write_text
from uniformerv2.curation.encoding import Encoding
from uniformerv2.curation.packing import JOURNAL, SUFFIX, Packed, Packing, Video, told
from uniformerv2.data.annotations import Annotation, Damaged, Unreadable
from uniformerv2.data.content import same_files
from uniformerv2.data.journal import Journal
from uniformerv2.data.manifest import copy_manifest
from uniformerv2.data.shards import is_shards, webdataset_module
from uniformerv2.data.sources import Classes, data_root, read_annotations
from uniformerv2.data.tables import check_names, check_target, relative_to
from uniformerv2.errors import AnnotationError, RecipeError
from uniformerv2.machine import WORKERS
from uniformerv2.text import normalised, short_digest
from uniformerv2.video.suffixes import VIDEO_SUFFIXES

MANIFEST, REPORT = "manifest.csv", "report.json"


@dataclass(frozen=True)
class PackReport:
    """What was packed."""

    manifest: Path
    rows: int  # of the data
    rows_left_out: int  # those of the videos in `unreadable`
    videos: int  # packed
    frames: int  # in them
    resized: int  # videos whose short side was longer
    padded: int  # videos with an odd side, whose last row or column comes twice
    bytes_before: int  # of the packed videos
    bytes_after: int
    unreadable: tuple[Unreadable, ...]  # left out; `row` is the first one of the video
    damaged: tuple[Damaged, ...]  # packed, with frames as the reader shows them

    def to_json(self) -> dict[str, Any]:
        """All of it; equal for equal data, wherever the packed folder lies."""
        return asdict(self) | {"manifest": self.manifest.name}


def pack(
    data: str | Path | Sequence[Annotation],
    output: str | Path,
    *,
    short_side: int = 256,
    keyframe_every: int = 1,
    crf: int = 23,
    shards: bool = False,
    per_shard: int = 1000,
    root: str | Path | None = None,
    classes: Classes | None = None,
    workers: int = WORKERS,
    progress: bool = False,
) -> PackReport:
    """Encode every video of a manifest once, so that clips of it are read fast, and write a manifest of the result.

    All frames stay, upright and at their times, so that intervals hold and sampling is the same. What is done is kept:
    after a kill, a full disk or Ctrl-C the same call goes on, and ends with the same files.

    Args:
        data: as of `read_annotations`; several rows may be of one video.
        output: the packed folder, new, empty, or begun by the same call. It receives `manifest.csv`, which has all
            columns of the data and differs in the paths, `report.json`, and the videos under their names as .mp4.
        short_side: pixels, even. Videos with a longer one are resized; others are not, and of an odd side their last
            row or column comes twice, since H.264 in 4:2:0 has even sides.
        keyframe_every: frames from one key frame to the next. 1: each frame is decoded alone; more: smaller, slower.
        crf: quality as x264 counts it, 0 (best) to 51.
        shards: write tar shards (`shards.py`) instead of files.
        per_shard: videos of a shard.
        root, classes: as of `read_annotations`.
        workers: processes that encode, each on one thread. With 0 this process does, and ends with a file that crashes
            the decoder.
        progress: show a bar on stderr.

    Returns:
        The report. Videos that cannot be read or encoded are named there, and their rows left out. They are tried
        again when they have changed.

    Raises:
        AnnotationError: invalid data; a folder that holds anything else; a disk that cannot be written to; no video
            that can be packed.
        RecipeError: invalid options, or a folder that was begun with others or with other data.
    """
    encoding, output = Encoding(short_side, keyframe_every, crf), Path(output)
    _check_options(workers, per_shard, shards)
    rows = read_annotations(data, root=root, classes=classes)
    videos = _videos(rows, data_root(data, rows, root), per_shard if shards else 0)
    _check_output(output, data, rows)
    with told(output):
        output.mkdir(exist_ok=True)
        with Journal(output / JOURNAL) as journal:
            packing = Packing(output, journal, videos, rows)
            packing.begin(_identity(rows, videos, encoding, per_shard if shards else 0))
            packing.pack(encoding, workers=workers, progress=progress)
        report = _report(output, rows, videos, packing.packed, encoding)
        write_text(output / REPORT, json.dumps(report.to_json(), indent=2) + "\n")
        packing.finish()
        table = Path(data) if isinstance(data, str | Path) and not is_shards(data) and not Path(data).is_dir() else None
        copy_manifest(table, output / MANIFEST, _moved(output, rows, videos, packing.packed))
    return report


def _check_options(workers: int, per_shard: int, shards: bool) -> None:
    if workers < 0:
        raise RecipeError(f"the number of workers must be 0 or more, got {workers}")
    if per_shard < 1:
        raise RecipeError(f"a shard holds at least 1 video, got {per_shard}")
    if shards:
        webdataset_module()


def _check_output(output: Path, data: str | Path | Sequence[Annotation], rows: Sequence[Annotation]) -> None:
    if output.exists() and not output.is_dir():
        raise AnnotationError(f"{output}: is a file; give a new folder")
    if not (output / JOURNAL).is_file():
        check_target(output)
    folder = os.path.abspath(output)
    if isinstance(data, str | Path) and Path(data).is_dir() and Path(folder).is_relative_to(os.path.abspath(data)):
        raise RecipeError(f"{output}: lies in the data, {data}; give a folder outside of it")
    if inside := next((row.path for row in rows if Path(os.path.abspath(row.path)).is_relative_to(folder)), None):
        raise RecipeError(f"{output}: holds a video that is to be packed, {inside}; give another folder")


def _identity(
    rows: Sequence[Annotation], videos: Sequence[Video], encoding: Encoding, per_shard: int
) -> dict[str, str]:
    """Everything that decides what the packed folder holds, beside the videos."""
    fields = [[row.label, row.start, row.end, row.split, row.group] for row in rows]
    content = short_digest([[[video.name, video.rows] for video in videos], fields])
    options = {name: str(value) for name, value in asdict(encoding).items()}
    return {"data": content, **options, "shards": f"of {per_shard} videos" if per_shard else "none"}


# --- which videos there are, and their names


def _videos(rows: Sequence[Annotation], root: Path, per_shard: int) -> list[Video]:
    """Each file once, in the order of the rows; in shards of so many videos, 0: as files."""
    of_file = same_files(dict.fromkeys(row.path for row in rows))
    positions: dict[Path, list[int]] = {}
    for position, row in enumerate(rows):
        positions.setdefault(of_file[row.path], []).append(position)
    shorten = relative_to(root)
    names = _unique_names((shorten(str(path)) for path in positions), in_shards=bool(per_shard))
    check_names(names)
    check_names({row.label for row in rows})
    shards = [f"shard-{number // per_shard:06d}.tar" if per_shard else "" for number in range(len(names))]
    found = zip(positions.items(), names, shards, strict=True)
    return [Video(path, name, shard, tuple(at)) for (path, at), name, shard in found]


def _unique_names(names: Iterable[str], *, in_shards: bool) -> list[str]:
    """The names of videos as .mp4, and with ~2, ~3 where a file system might take two for one."""
    paths = [PurePosixPath(name) for name in names]
    folders = [PurePosixPath(*(part.removesuffix(".tar") for part in path.parts[:-1])) for path in paths]
    taken = {_as_compared(folder) for path in folders for folder in (path, *path.parents)}
    found = []
    for path, folder in zip(paths, folders, strict=True):
        stem = path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name
        if in_shards:
            stem = stem.replace(".", "_")  # the name of a sample ends at the first dot
        tries = (folder / f"{stem}{f'~{number}' if number > 1 else ''}{SUFFIX}" for number in count(1))
        name = next(name for name in tries if _as_compared(name) not in taken)
        taken.add(_as_compared(name))
        found.append(str(name))
    return found


def _as_compared(path: PurePosixPath) -> str:
    return normalised(str(path)).casefold()


# --- what is written


def _report(
    output: Path, rows: Sequence[Annotation], videos: Sequence[Video], packed: Mapping[str, Packed], encoding: Encoding
) -> PackReport:
    failed = [(video, packed[video.name].error) for video in videos if packed[video.name].error]
    whole = [(video, packed[video.name]) for video in videos if not packed[video.name].error]
    if not whole:
        raise AnnotationError(f"{output}: not one of {len(videos)} videos can be packed; the first: {failed[0][1]}")
    odd = [of.height % 2 or of.width % 2 for _, of in whole if min(of.height, of.width) <= encoding.short_side]
    return PackReport(
        manifest=output / MANIFEST,
        rows=len(rows),
        rows_left_out=sum(len(video.rows) for video, _ in failed),
        videos=len(whole),
        frames=sum(of.frames for _, of in whole),
        resized=len(whole) - len(odd),
        padded=sum(map(bool, odd)),
        bytes_before=sum(of.bytes_before for _, of in whole),
        bytes_after=sum(of.bytes_after for _, of in whole),
        unreadable=tuple(Unreadable(str(video.source), error, video.rows[0]) for video, error in failed),
        damaged=tuple(Damaged(str(video.source), of.damage) for video, of in whole if of.damage),
    )


def _moved(
    output: Path, rows: Sequence[Annotation], videos: Sequence[Video], packed: Mapping[str, Packed]
) -> list[Annotation | None]:
    """The rows with the paths of packed videos; None where there is none."""
    places: dict[int, Path] = {}
    for video in videos:
        if not packed[video.name].error:
            places |= dict.fromkeys(video.rows, output.joinpath(video.shard, video.name))
    return [replace(row, path=places[at]) if at in places else None for at, row in enumerate(rows)]

"""Embeddings of videos: of each as a whole, or of windows that slide over it, with their times."""

from __future__ import annotations

import base64
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from uniformerv2.atomic import whole_file
from uniformerv2.data.annotations import Annotation, Damaged, Unreadable
from uniformerv2.data.shards import is_shards, video_source
from uniformerv2.data.sources import read_annotations
from uniformerv2.data.tables import PARQUET_SUFFIXES
from uniformerv2.device import model_device
from uniformerv2.errors import AnnotationError, CheckpointError, RecipeError, VideoError
from uniformerv2.measuring.evaluation import of_split
from uniformerv2.measuring.ledger import Ledger, Part, Record, videos_digest, weights_digest
from uniformerv2.measuring.streams import stream
from uniformerv2.model.config import Preprocessing
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.video.reader import VideoReader
from uniformerv2.video.sampling import segment_indices
from uniformerv2.video.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from uniformerv2.video.windows import Windows, window_frames

if TYPE_CHECKING:
    from rich.console import Console

FORMATS = frozenset({".npz", *PARQUET_SUFFIXES})

_JUST_BEFORE = 1e-3  # seconds: the frame at the end of a window belongs to the next one
_ATTEMPTS = 2  # a process may be ended by chance
_ROW_GROUP = 4096  # rows that Parquet keeps together


@dataclass(frozen=True, eq=False)
class VideoFeatures:
    """Embeddings of the windows of videos, in the order of the videos and of time."""

    paths: tuple[str, ...]  # of all videos
    labels: tuple[str, ...]  # of the same, "" where nothing is known
    video: np.ndarray  # int64 (windows): which of the videos
    start: np.ndarray  # float64 (windows): seconds
    end: np.ndarray  # float64 (windows): seconds
    embeddings: np.ndarray  # float32 (windows, width): `ClipFeatures.pooled`, before the head's LayerNorm
    frame_embeddings: np.ndarray | None  # float32 (windows, frames, width), where asked for
    skipped: tuple[Unreadable, ...]  # videos that could not be read; they have no windows
    damaged: tuple[Damaged, ...] = ()

    def save(self, target: Path) -> None:
        """Write everything to one file, whole or not at all; docs/evaluation.md says what is in it.

        Args:
            target: .npz, or Parquet by the suffix .parquet or .pq.

        Raises:
            RecipeError: another suffix.
            AnnotationError: Parquet without pyarrow, or there is no folder to write to.
        """
        check_format(target)
        with whole_file(target) as partial:
            (self._write_npz if target.suffix.lower() == ".npz" else self._write_parquet)(partial)

    def _write_npz(self, target: Path) -> None:
        errors = {one.row: one.reason for one in self.skipped}
        arrays = {
            "paths": np.array(self.paths, dtype=np.str_),
            "labels": np.array(self.labels, dtype=np.str_),
            "errors": np.array([errors.get(number, "") for number in range(len(self.paths))], dtype=np.str_),
            "video": self.video,
            "start": self.start,
            "end": self.end,
            "embeddings": self.embeddings,
        }
        if self.frame_embeddings is not None:
            arrays["frame_embeddings"] = self.frame_embeddings
        with target.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def _write_parquet(self, target: Path) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise AnnotationError('Parquet files need pyarrow: pip install "uniformerv2[data]"; or use .npz') from None

        def nested(values: np.ndarray) -> Any:
            column = pyarrow.array(values.reshape(-1))
            for size in reversed(values.shape[1:]):
                column = pyarrow.FixedSizeListArray.from_arrays(column, size)
            return column

        columns = {
            "path": pyarrow.array([self.paths[number] for number in self.video], pyarrow.string()),
            "label": pyarrow.array([self.labels[number] for number in self.video], pyarrow.string()),
            "start": pyarrow.array(self.start),
            "end": pyarrow.array(self.end),
            "embedding": nested(self.embeddings),
        }
        if self.frame_embeddings is not None:
            columns["frame_embeddings"] = nested(self.frame_embeddings)
        errors = json.dumps([{"path": one.path, "error": one.reason} for one in self.skipped])
        table = pyarrow.table(columns).replace_schema_metadata({"skipped": errors})
        parquet.write_table(table, target, row_group_size=_ROW_GROUP)


def check_format(target: Path) -> None:
    """Raises RecipeError for a file that features cannot be written to."""
    if target.suffix.lower() not in FORMATS:
        raise RecipeError(
            f"{target}: features are written to {', '.join(sorted(FORMATS))}; choose one of these suffixes"
        )


def find_videos(sources: Sequence[Path], *, root: Path | None = None, split: str = "all") -> list[Annotation]:
    """Videos to look at; nobody has to know what they show.

    Args:
        sources: video files, folders (every video below them, however deep; a folder of images is one video),
            manifests (CSV or Parquet) and tar shards.
        root: what the paths of manifests are relative to; None: their own folders.
        split: which rows of manifests; see `of_split`.

    Returns:
        At least one, labels and times as in manifests, else without.

    Raises:
        AnnotationError: a source that is not there, or without videos.
    """
    found: list[Annotation] = []
    for source in sources:
        if is_shards(source) or source.suffix.lower() in {".csv", *PARQUET_SUFFIXES}:
            videos = of_split(read_annotations(source, root=root), split)
        elif source.is_dir():
            videos = [Annotation(path, "") for path in _videos_in(source)]
            if not videos:
                raise AnnotationError(f"{source}: no video in this folder")
        elif source.exists():
            videos = [Annotation(source, "")]
        else:
            raise AnnotationError(f"{source}: no such video, folder or manifest")
        found += videos
    if not found:
        raise AnnotationError("no videos given")
    return found


def _videos_in(folder: Path) -> Iterator[Path]:
    children = sorted(child for child in folder.iterdir() if not child.name.startswith("."))
    videos = [child for child in children if child.suffix.lower() in VIDEO_SUFFIXES and child.is_file()]
    if not videos and any(child.suffix.lower() in IMAGE_SUFFIXES for child in children):
        yield folder
        return
    for child in children:
        if child.is_dir():
            yield from _videos_in(child)
        elif child in videos:
            yield child


def extract_features(
    model: UniFormerV2,
    videos: Sequence[Annotation | str | Path],
    *,
    window: float | None = None,
    stride: float | None = None,
    frame_embeddings: bool = False,
    batch_size: int = 8,
    workers: int = 0,
    journal: Path | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> VideoFeatures:
    """Embed videos, or windows that slide over them.

    The frames of a window are evenly spread over it, as those of a test clip are over its video, and cropped at the
    centre. A video is decoded once, from its beginning to its end, however its windows overlap; no more of it is held
    than the windows that are open at a time. Processes share the videos as in `evaluate`, with equal results.

    Args:
        model: computes in float32 on the device that it is on, and is left in eval mode. Its head is not used.
        videos: files, folders of frame images, or annotations, of which only the annotated interval is looked at.
        window: seconds; None: each video is one window.
        stride: seconds from the start of a window to that of the next; None: as `window`. See `Windows.times`.
        frame_embeddings: also keep what the image model says of each frame (after a stem that joins frames, of those).
        batch_size: windows that the model sees at once.
        workers: processes that read videos; 0 reads in this one.
        journal, resume: as in `evaluate`.
        console: shows a bar on a terminal; None shows nothing.

    Raises:
        CheckpointError: what the model computes are no numbers.
        RecipeError: options that make no sense, or a journal that does not fit them.
        VideoError: not one video could be read.
    """
    windows = Windows(window, stride)
    if batch_size < 1:
        raise RecipeError(f"the batch size must be at least 1, got {batch_size}")
    rows = [one if isinstance(one, Annotation) else Annotation(Path(one), "") for one in videos]
    step = batch_size if windows.seconds is None else 1  # videos that are computed together
    units = [range(first, min(first + step, len(rows))) for first in range(0, len(rows), step)]
    ledger = Ledger(
        journal, _work(model, rows, windows, frame_embeddings, batch_size) if journal else {}, resume=resume
    )
    reader = _PieceReader(rows, windows, model.preprocessing, batch_size, ledger.done)
    try:
        model.eval()
        open_units = [(number, units[number]) for number in ledger.mine(len(units)) if (number, -1) not in ledger.done]
        with _progress(console, len(open_units)) as advance:
            for piece in reader.read(open_units, workers=workers):
                ledger.add(piece.part, _embed(model, piece, frame_embeddings))
                advance(piece.part[1] == -1)
        records = ledger.collect()
    finally:
        ledger.close()
    return _joined(rows, records)


@dataclass
class Piece:
    """Windows that are computed together; all that a unit of videos has is in its pieces."""

    part: Part  # (unit, number of the piece); the last of a unit has the number -1
    windows: list[tuple[int, float, float]] = field(default_factory=list)  # video, start and end in seconds
    clips: list[np.ndarray] = field(default_factory=list)  # float32 (3, frames, height, width), one for each window
    skipped: list[tuple[int, str]] = field(default_factory=list)  # video, reason
    damaged: list[tuple[str, str]] = field(default_factory=list)  # path, what is damaged


Unit = tuple[int, range]  # its number and its videos
_Task = tuple[int, range, dict[int, str]]  # and those of its videos that must not be touched, and why


class _PieceReader:
    """Reads units of videos as pieces, in this process or in others.

    A video whose decoding ends a process is tried once more in a new one, and then left out and named like any other
    that cannot be read.
    """

    def __init__(
        self,
        rows: Sequence[Annotation],
        windows: Windows,
        preprocessing: Preprocessing,
        batch_size: int,
        done: set[Part],
    ) -> None:
        self.rows, self.windows, self.preprocessing = rows, windows, preprocessing
        self.batch_size = batch_size
        self.done = done

    def read(self, units: Sequence[Unit], *, workers: int) -> Iterator[Piece]:
        """The pieces of the units that are not done yet; those of a unit in order."""
        tasks: deque[_Task] = deque((*unit, {}) for unit in units)
        current: dict[int, int] = {}  # the video that is being read, by unit
        deaths: Counter[int] = Counter()  # by video
        for (number, videos, deadly), result in stream(self._pieces, tasks, workers=workers):
            if isinstance(result, Piece):
                if result.part not in self.done:
                    yield result
            elif isinstance(result, int):
                current[number] = result
            else:
                video = current.get(number, videos[0])
                deaths[video] += 1
                if deaths[video] == _ATTEMPTS:
                    reason = f"{self.rows[video].path}: reading it ended a process ({result.cause})"
                    deadly = deadly | {video: reason}
                tasks.append((number, videos, deadly))

    def _pieces(self, task: _Task) -> Iterator[int | Piece]:
        """The number of each video, before it is opened, and the pieces."""
        # A unit that was begun is decoded from its beginning: of a damaged video, other ways of reading could give
        # other frames. What is in the journal is only not computed again.
        unit, videos, deadly = task
        piece, number = Piece((unit, 0)), 0
        for video in videos:
            yield video
            if video in deadly:
                piece.skipped.append((video, deadly[video]))
                continue
            damage: list[str] = []
            try:
                for start, end, clip in read_windows(self.rows[video], self.windows, self.preprocessing, damage):
                    if len(piece.clips) == self.batch_size:
                        yield piece
                        number += 1
                        piece = Piece((unit, number))
                    piece.windows.append((video, start, end))
                    piece.clips.append(clip.numpy())
            except VideoError as error:
                piece.skipped.append((video, str(error)))
            except (AnnotationError, OSError) as error:  # a shard that has changed
                piece.skipped.append((video, f"{self.rows[video].path}: {error}"))
            else:
                piece.damaged += [(str(self.rows[video].path), what) for what in damage]
        piece.part = (unit, -1)
        yield piece


def read_windows(
    row: Annotation, windows: Windows, preprocessing: Preprocessing, damage: list[str]
) -> Iterator[tuple[float, float, Tensor]]:
    """The windows of a video one after the other, while it is decoded once.

    Args:
        row: which video, and which part of it.
        windows: where they lie.
        preprocessing: frames, size and normalisation of the model.
        damage: receives, at the end, what is damaged in a video that was read all the same.

    Yields:
        (start and end in seconds, float32 (3, frames, height, width), normalised, the centre crop).

    Raises:
        VideoError: the video, or a frame of it, cannot be read.
    """
    with VideoReader(video_source(row.path), threads=1, name=str(row.path)) as reader:
        times = _times(reader, row, windows)
        places = [_frames_between(reader, preprocessing, windows, row, *time) for time in times]
        for (start, end), indices, frames in zip(
            times, places, window_frames(reader, places, preprocessing), strict=True
        ):
            # frames x (3, height, width) -> (3, frames, height, width)
            yield start, end, torch.stack([frames[index] for index in indices], dim=1)
        if reader.damage:
            damage.append(reader.damage)


def _times(reader: VideoReader, row: Annotation, windows: Windows) -> list[tuple[float, float]]:
    start, end = row.start or 0.0, reader.duration
    if start >= end:
        raise VideoError(f"{row.path}: the annotation starts at {start:g} s, but the video lasts {end:g} s")
    end = end if row.end is None else min(row.end, end)
    return windows.times(start, end, tolerance=0.5 / reader.rate)


def _frames_between(
    reader: VideoReader, preprocessing: Preprocessing, windows: Windows, row: Annotation, start: float, end: float
) -> list[int]:
    """Frames of a window: those shown from its start up to its end; of a whole video, as in evaluation."""
    if windows.seconds is not None:
        last = reader.index_at(end - _JUST_BEFORE)
    else:
        last = len(reader) - 1 if row.end is None else reader.index_at(row.end)
    first = min(reader.index_at(start), last)
    return [first + index for index in segment_indices(last - first + 1, preprocessing.num_frames)]


@torch.inference_mode()
def _embed(model: UniFormerV2, piece: Piece, frame_embeddings: bool) -> Record:
    """What is written down of a piece, as JSON has it."""
    record: Record = {"windows": piece.windows, "skipped": piece.skipped, "damaged": piece.damaged}
    if piece.clips:
        features = model.forward_features(torch.from_numpy(np.stack(piece.clips)).to(model_device(model)))
        if not features.pooled.isfinite().all():
            raise CheckpointError("the model gives NaN, so its weights or its clips are no numbers")
        record["embeddings"] = _packed(features.pooled)
        if frame_embeddings:
            record["frame_embeddings"] = _packed(features.frame_embeddings)
            record["frames"] = features.frame_embeddings.shape[1]
    return record


def _joined(rows: Sequence[Annotation], records: dict[Part, Record]) -> VideoFeatures:
    """Everything in order."""
    # the last piece of a unit has the number -1
    ordered = [records[part] for part in sorted(records, key=lambda part: (part[0], part[1] % 2**62))]
    skipped = sorted((video, reason) for record in ordered for video, reason in record["skipped"])
    if len(skipped) == len(rows):
        raise VideoError(f"not one of {len(rows)} videos could be read; the first: {skipped[0][1]}")
    windows = [window for record in ordered for window in record["windows"]]
    unread = {video for video, _ in skipped}  # some of their windows may have been read before the damage
    kept = np.array([video not in unread for video, _, _ in windows], dtype=bool)
    video, start, end = (np.array(column) for column in zip(*windows, strict=True))
    filled = [record for record in ordered if record["windows"]]
    embeddings = np.concatenate([_unpacked(one["embeddings"], len(one["windows"])) for one in filled])
    frames = None
    if "frame_embeddings" in filled[0]:
        shapes = [(len(one["windows"]), one["frames"]) for one in filled]
        frames = np.concatenate(
            [_unpacked(one["frame_embeddings"], *shape) for one, shape in zip(filled, shapes, strict=True)]
        )[kept]
    return VideoFeatures(
        paths=tuple(str(row.path) for row in rows),
        labels=tuple(row.label for row in rows),
        video=video.astype(np.int64)[kept],
        start=start.astype(np.float64)[kept],
        end=end.astype(np.float64)[kept],
        embeddings=embeddings[kept],
        frame_embeddings=frames,
        skipped=tuple(Unreadable(str(rows[number].path), reason, number) for number, reason in skipped),
        damaged=tuple(sorted({Damaged(path, what) for record in ordered for path, what in record["damaged"]})),
    )


def _packed(values: Tensor) -> str:
    return base64.b64encode(values.float().cpu().contiguous().numpy().astype("<f4").tobytes()).decode()


def _unpacked(text: str, *shape: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32).reshape(*shape, -1)


def _work(
    model: UniFormerV2, rows: Sequence[Annotation], windows: Windows, frame_embeddings: bool, batch_size: int
) -> dict[str, str]:
    """What decides the result, for the journal."""
    return {
        "weights": weights_digest(model),
        "videos": videos_digest(rows),
        "windows": str(windows),
        "frame embeddings": "yes" if frame_embeddings else "no",
        "batch size": str(batch_size),
    }


@contextmanager
def _progress(console: Console | None, units: int) -> Iterator[Callable[[float], object]]:
    """A bar on a terminal, and how to move it on."""
    if console is None or not console.is_terminal:
        yield lambda units: None
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("embedding", total=units)
        yield partial(bar.advance, task)

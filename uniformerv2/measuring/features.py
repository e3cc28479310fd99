"""Embeddings of videos: of each as a whole, or of windows with their times; as data and as files (.npz, Parquet)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from uniformerv2.atomic import whole_file
from uniformerv2.data.annotations import Annotation, Damaged, Split, Unreadable
from uniformerv2.data.sources import Classes, find_videos
from uniformerv2.data.tables import PARQUET_SUFFIXES, check_suffix, parquet_modules
from uniformerv2.device import fetch_later, model_device, on_device, one_late, upload
from uniformerv2.errors import CheckpointError, RecipeError, VideoError
from uniformerv2.inference.optimize import Backend
from uniformerv2.inference.parts import in_parts
from uniformerv2.inference.precision import InferencePrecision
from uniformerv2.machine import WORKERS
from uniformerv2.measuring.digests import videos_digest, weights_digest
from uniformerv2.measuring.models import Computing, computing, on_rank_device
from uniformerv2.measuring.shared_windows import SharedWindows, windows_share
from uniformerv2.measuring.shared_work import Result, SharedWork, WorkItem, packed, unpacked
from uniformerv2.measuring.window_reading import LAST, WindowBatch, WindowReader
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.progress import bar
from uniformerv2.text import utf8
from uniformerv2.video.clips import Windows

FORMATS = frozenset({".npz", *PARQUET_SUFFIXES})

_ROW_GROUP = 4096  # rows that Parquet keeps together


@dataclass(frozen=True, eq=False)
class VideoFeatures:
    """Embeddings of the windows of videos, in the order of the videos and of time."""

    paths: tuple[str, ...]  # of all videos
    labels: tuple[str, ...]  # of the same, "" where unknown
    video: np.ndarray  # int64 (windows): which of the videos
    start: np.ndarray  # float64 (windows): seconds
    end: np.ndarray  # float64 (windows): seconds
    embeddings: np.ndarray  # float32 (windows, width): `ClipFeatures.pooled`, before the head's LayerNorm
    frame_embeddings: np.ndarray | None  # float32 (windows, frames, width), where asked for
    skipped: tuple[Unreadable, ...]  # they have no windows
    damaged: tuple[Damaged, ...] = ()

    def save(self, path: str | Path) -> None:
        """Write everything to one file, whole or not at all; docs/evaluation.md lists what is in it.

        Args:
            path: .npz, or Parquet by the suffix .parquet or .pq.

        Raises:
            RecipeError: another suffix.
            AnnotationError: Parquet without pyarrow, or there is no folder to write to.
        """
        path = Path(path)
        check_suffix(path, FORMATS)
        with whole_file(path) as partial:
            (self._write_npz if path.suffix.lower() == ".npz" else self._write_parquet)(partial)

    def _write_npz(self, target: Path) -> None:
        errors = {video.row: video.reason for video in self.skipped}
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
        pyarrow, parquet = parquet_modules(".npz")

        def nested(values: np.ndarray) -> Any:
            column = pyarrow.array(values.reshape(-1))
            for size in reversed(values.shape[1:]):
                column = pyarrow.FixedSizeListArray.from_arrays(column, size)
            return column

        columns = {
            "path": pyarrow.array([utf8(self.paths[number]) for number in self.video], pyarrow.string()),
            "label": pyarrow.array([utf8(self.labels[number]) for number in self.video], pyarrow.string()),
            "start": pyarrow.array(self.start),
            "end": pyarrow.array(self.end),
            "embedding": nested(self.embeddings),
        }
        if self.frame_embeddings is not None:
            columns["frame_embeddings"] = nested(self.frame_embeddings)
        errors = json.dumps([{"path": video.path, "error": video.reason} for video in self.skipped])
        table = pyarrow.table(columns).replace_schema_metadata({"skipped": errors})
        with target.open("wb") as file:  # the library takes no path that is not UTF-8
            parquet.write_table(table, file, row_group_size=_ROW_GROUP)


def extract_features(
    model: str | Path | nn.Module,
    data: str | Path | Sequence[str | Path | Annotation],
    *,
    root: str | Path | None = None,
    classes: Classes | None = None,
    split: Split = "all",
    batch_size: int = 8,
    window_seconds: float | None = None,
    stride_seconds: float | None = None,
    frame_embeddings: bool = False,
    precision: InferencePrecision | Literal["auto"] = "fp32",
    backend: Backend | Literal["auto"] = "torch",
    device: str = "auto",
    workers: int = WORKERS,
    journal: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
) -> VideoFeatures:
    """Embed videos, or windows that slide over them.

    `Windows.plan` chooses the frames of a window, which are cropped at the centre. A video is decoded once, from its
    beginning to its end, however its windows overlap; only the frames of the windows that are open at a time are held.
    Where the model computes each frame by itself, a frame that several windows have is encoded once.
    Processes share the videos as in `evaluate`, with equal results.

    Args:
        model: a checkpoint or a model, as of `Predictor`. Its head is not used.
        data, root, classes, split: as of `find_videos`; of an annotation only the annotated interval is embedded.
        batch_size: windows that the model sees at once.
        window_seconds: length of a window; None: each video is one window.
        stride_seconds: from the start of a window to that of the next; None: as `window_seconds`. See `Windows.times`.
        frame_embeddings: also keep the frame embeddings (after a stem that joins frames, those of the joined ones).
        precision, backend, device, workers, journal, resume, progress: as of `evaluate`.

    Raises:
        AnnotationError: as `find_videos`.
        CheckpointError: the model computes NaN; or as `resolve_model`.
        RecipeError: impossible options, or a journal that does not fit them or that `resume` was not given for.
        VideoError: none of the videos could be read.
    """
    windows = Windows(window_seconds, stride_seconds)
    if batch_size < 1:
        raise RecipeError(f"the batch size must be at least 1, got {batch_size}")
    rows = find_videos(data, root=root, classes=classes, split=split)
    model = on_rank_device(model, device=device, labels=())  # of a head that is not used
    chosen = computing(model, precision=precision, backend=backend)
    identity = {
        "windows": str(windows),
        "frame embeddings": "yes" if frame_embeddings else "no",
        "batch size": str(batch_size),
        **chosen.identity,
    }
    if journal:
        identity |= {"weights": weights_digest(model), "videos": videos_digest(rows)}
    with SharedWork(journal, identity, resume=resume) as work:
        reader = WindowReader(rows, windows, model.preprocessing, batch_size, work.done)
        _embed_share(chosen, reader, work, frame_embeddings, workers=workers, progress=progress)
        results = work.collect()
    return _joined(rows, results)


def _embed_share(
    chosen: Computing, reader: WindowReader, work: SharedWork, frame_embeddings: bool, *, workers: int, progress: bool
) -> None:
    """Compute this process's share of the batches that have no result yet."""
    model = chosen.model
    # a compiled graph gains nothing by another number of frames in each batch
    shares = chosen.backend == "torch" and windows_share(reader.windows, model.config)
    shared = SharedWindows(model) if shares else None
    count = len(reader.rows)
    step = reader.batch_size if reader.windows.seconds is None else 1  # videos that are computed together
    groups = [range(first, min(first + step, count)) for first in range(0, count, step)]
    left = [(number, groups[number]) for number in work.share(len(groups)) if (number, LAST) not in work.done]
    with ExitStack() as stack:
        batches = stack.enter_context(closing(reader.read(left, workers=workers)))
        if workers:  # without, this thread reads
            batches = stack.enter_context(closing(on_device(batches, model_device(model))))
        advance = stack.enter_context(bar("embedding", len(left), progress=progress))
        begun = ((batch.item, _embed(model, shared, batch, frame_embeddings)) for batch in _not_done(batches, shared))
        for item, result in one_late(begun):
            work.add(item, result)
            advance(item[1] == LAST)


def _not_done(batches: Iterable[WindowBatch], shared: SharedWindows | None) -> Iterator[WindowBatch]:
    for batch in batches:
        if not batch.done:
            yield batch
        elif shared is not None:
            shared.pass_over(batch)


@torch.inference_mode()
def _embed(
    model: UniFormerV2, shared: SharedWindows | None, batch: WindowBatch, frame_embeddings: bool
) -> Callable[[], Result]:
    """Begin a batch; what is returned waits for its result, as JSON has it."""
    result: Result = {"windows": batch.windows, "skipped": batch.skipped, "damaged": batch.damaged}
    if batch.clips is None:
        return lambda: result
    clips, clip_of = upload(batch.clips, model_device(model)), batch.clip_of
    if shared is not None:
        parts = shared.embed(batch, clips)
    else:
        parts = in_parts(model.forward_features, clips, len(clips), by=model)
    wanted = [[part.pooled for part in parts]]
    if frame_embeddings:
        wanted.append([part.frame_embeddings for part in parts])
    fetches = [fetch_later(torch.cat(tensors)) for tensors in wanted]

    def finish() -> Result:
        pooled, *frames = (fetch() for fetch in fetches)
        if not pooled.isfinite().all():
            raise CheckpointError("the model gives NaN, so its weights or its clips are no numbers")
        result["embeddings"] = packed(pooled[clip_of])
        for of_frames in frames:
            result.update(frame_embeddings=packed(of_frames[clip_of]), frames=of_frames.shape[1])
        return result

    return finish


def _joined(rows: Sequence[Annotation], results: Mapping[WorkItem, Result]) -> VideoFeatures:
    """Everything in order."""
    ordered = [results[item] for item in sorted(results, key=lambda item: (item[0], item[1] == LAST, item[1]))]
    skipped = sorted((video, reason) for result in ordered for video, reason in result["skipped"])
    if len(skipped) == len(rows):
        raise VideoError(f"not one of {len(rows)} videos could be read; the first: {skipped[0][1]}")
    windows = [window for result in ordered for window in result["windows"]]
    unread = {video for video, _ in skipped}  # some of their windows may have been read before the damage
    kept = np.array([video not in unread for video, _, _ in windows], dtype=bool)
    video, start, end = (np.array(column) for column in zip(*windows, strict=True))
    filled = [result for result in ordered if result["windows"]]
    embeddings = np.concatenate([unpacked(result["embeddings"], len(result["windows"])) for result in filled])
    frames = None
    if "frame_embeddings" in filled[0]:
        frames = np.concatenate(
            [unpacked(result["frame_embeddings"], len(result["windows"]), result["frames"]) for result in filled]
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
        damaged=tuple(sorted({Damaged(path, what) for result in ordered for path, what in result["damaged"]})),
    )

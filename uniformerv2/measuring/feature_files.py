"""Embeddings of videos as data and as files: .npz, or Parquet."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uniformerv2.atomic import whole_file
from uniformerv2.data.annotations import Damaged, Unreadable
from uniformerv2.data.tables import PARQUET_SUFFIXES
from uniformerv2.errors import AnnotationError, RecipeError

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
        check_format(path)
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
        errors = json.dumps([{"path": video.path, "error": video.reason} for video in self.skipped])
        table = pyarrow.table(columns).replace_schema_metadata({"skipped": errors})
        parquet.write_table(table, target, row_group_size=_ROW_GROUP)


def check_format(target: Path) -> None:
    """Raises RecipeError for a file that features cannot be written to."""
    if target.suffix.lower() not in FORMATS:
        raise RecipeError(
            f"{target}: features are written to {', '.join(sorted(FORMATS))}; choose one of these suffixes"
        )

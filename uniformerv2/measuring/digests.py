"""Short texts that differ where weights or videos differ: what results depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from uniformerv2.data.annotations import Annotation
from uniformerv2.model.uniformerv2 import UniFormerV2


def weights_digest(model: UniFormerV2) -> str:
    """Of a model's tensors, architecture, preprocessing, labels and thresholds."""
    return tensors_digest(model.state_dict(), _facts(model))


def _facts(model: UniFormerV2) -> list[object]:
    several_labels = [model.thresholds] if model.thresholds else []
    return [asdict(model.config), asdict(model.preprocessing), model.labels, *several_labels]


def tensors_digest(tensors: Mapping[str, Tensor], facts: object) -> str:
    """Of tensors and of facts about them, which JSON can hold."""
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def videos_digest(annotations: Sequence[Annotation]) -> str:
    """Of rows and of the files that they name; begins with the number of rows."""
    digest = hashlib.sha256()
    for row in annotations:
        line = [str(row.path), row.label, row.start, row.end, *_stamp(row.path), *row.other_labels]
        digest.update(json.dumps(line).encode() + b"\n")
    return f"{len(annotations)} rows {digest.hexdigest()[:16]}"


def _stamp(path: Path) -> tuple[int, int]:
    """Bytes and time of the last change in nanoseconds, of a file or of its shard; (0, 0) where there is neither."""
    for place in (path, *path.parents):
        with suppress(OSError):
            status = place.stat()
            return (status.st_size, status.st_mtime_ns) if place == path or place.is_file() else (0, 0)
    return 0, 0

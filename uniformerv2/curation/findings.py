"""What can be wrong with the rows of a manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from uniformerv2.data.annotations import Annotation

FindingKind = Literal[
    "missing",  # no such file
    "unreadable",  # a frame that evaluation needs cannot be decoded
    "kills-decoder",  # reading it ends the process that reads
    "too-short",  # fewer frames than a clip has, or shorter than the minimum
    "beyond-end",  # the annotated interval is not within the video
    "wrong-duration",  # the container states another duration than its frames have
    "damaged",  # damaged, but the frames that evaluation needs can be decoded
    "duplicate",  # the content of an earlier row, at the same time and with the same label
    "leak",  # a training row whose content is in val or test as well
    "near-duplicate",  # looks like an earlier row with the same label
    "near-leak",  # a training row that looks like a row in val or test
    "two-labels",  # the content of a row with another label, at the same time
]
FINDING_KINDS: tuple[FindingKind, ...] = get_args(FindingKind)
KEPT: tuple[FindingKind, ...] = ("damaged", "near-duplicate", "near-leak", "two-labels")
"""Findings that by default leave a row in the manifest: harmless, uncertain, or for the user to decide."""


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """A row of the manifest that is checked."""

    line: int  # in the manifest, from 1; of a folder, its position from 1
    name: str  # its path, relative to the root
    annotation: Annotation


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a row."""

    row: int  # position, from 0
    kind: FindingKind
    detail: str
    other: int | None = None  # position of the row that it resembles

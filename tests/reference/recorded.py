"""The recorded outputs, and our models of the same weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from torch import Tensor

from reference.drawn import Entry, difference, draw, draw_state
from reference.manifest import IMAGE, OVERRIDES, VIDEO
from reference.outputs import armed
from uniformerv2 import UniFormerV2, load_model
from uniformerv2.weights.image_hints import hints_from_metadata

LIMIT, GRADIENT_LIMIT = 1e-5, 1e-4


class Record(TypedDict):
    """A file of tests/reference/outputs."""

    source: str  # whose code, and which version
    weights: dict[str, list[int]]  # names and shapes
    outputs: dict[str, Entry]


def record_file(name: str) -> Path:
    return Path(__file__).parent / "outputs" / f"{name}.json"


def read_record(name: str) -> Record:
    return json.loads(record_file(name).read_text())


def differences(outputs: Mapping[str, Entry], recorded: Mapping[str, Entry]) -> tuple[dict[str, float], list[str]]:
    """The largest difference of each kind of output, and those past the limit, a line each."""
    largest: dict[str, float] = {}
    past = []
    for name in sorted(outputs.keys() | recorded.keys()):
        error = difference(outputs[name], recorded[name]) if name in outputs and name in recorded else math.inf
        kind = ".".join(name.split(".")[:2])
        largest[kind] = max(largest.get(kind, 0.0), error)
        if not error <= (GRADIENT_LIMIT if kind == "train.grad" else LIMIT):
            past.append(f"{name}: {error:.1e}")
    return largest, past


def video_model(name: str) -> UniFormerV2:
    """A model of `VIDEO` with its drawn weights. Heads and global stages are given: no tensor shows them."""
    config = VIDEO[name].config
    state = draw_state(read_record(name)["weights"], seed=name)
    return load_model(state, heads=config["heads"], global_after=config["global_after"], labels=())


def image_model(name: str) -> UniFormerV2:
    """The video model made of an image transformer of `IMAGE` with its drawn weights."""
    state = draw_state(read_record(name)["weights"], seed=name)
    timm_model, side, pool = IMAGE[name]
    metadata = {"timm_model": timm_model, "img_size": str(side), "global_pool": pool}
    return armed(state, hints_from_metadata({**metadata, "overrides": json.dumps(OVERRIDES)}))


def draw_input(name: str) -> Tensor:
    """A clip for a model of `VIDEO`; images for one of `IMAGE`."""
    return draw(f"{name} input", VIDEO[name].clip if name in VIDEO else IMAGE[name].images, scale=2.0)

"""Compare this package with recorded outputs of the official implementation, of mmaction2 and of image transformers.

    python benchmarks/conformance.py FILE...

A FILE is a safetensors file of one of three kinds; every recorded tensor is compared.

- A video model: an architecture in its metadata (keys `res`, `patch`, `width`, `layers`, `heads`, `ret`, `classes`,
  `lm`, `dbl`, `td`, `dwr`, `frozen`), a state dict under `weights.*` in the official or mmaction2's names, an `input`,
  and any of `eval.logits`, `eval.pooled`, `eval.features` (the pooled token after the head's norm), `eval.local.K`,
  `eval.global.K`, `train.logits`, `train.loss` (with `train.target`), `train.grad.*`, `train.after.*`. The weights go
  through `load_model`, with the two options that no tensor contains: `heads` and the blocks with global stages.
- An image transformer: a state dict of any known layout under `weights.*`, an `input` (n, 3, height, width) that is
  normalised already, its `tokens` after the last norm (class token, registers, patches) and the `pooled` embedding.
  Family and sizes come from the keys and the metadata (`timm_model`, `overrides`, `img_size`, `global_pool`). The
  pooled embedding is compared with the armed video model's too, one image a frame.
- Test crops: `NAME.frames` with `NAME.crop0`, 1, 2.

Prints the largest error of each kind, relative to the largest absolute value of the recorded tensor; exits 1 where one
is past 1e-5 (gradients: 1e-4), or where nothing was compared.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from uniformerv2 import UniFormerV2, load_model
from uniformerv2.weights.image_hints import hints_from_metadata
from uniformerv2.weights.key_names import VIDEO_FORMATS, formats_of, to_ours

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from reference.outputs import armed, crop_outputs, eval_outputs, image_outputs, train_outputs

LIMITS = {"gradients": 1e-4}
LIMIT = 1e-5

Record = dict[str, Tensor]
Errors = dict[str, float]


def main(files: list[str]) -> int:
    if not files:
        print(__doc__)
        return 2
    failed = 0
    for file in files:
        errors = compare(Path(file))
        bad = [kind for kind, error in errors.items() if not error <= LIMITS.get(kind, LIMIT)]
        failed += bool(bad) or not errors
        figures = "  ".join(f"{kind} {error:.1e}" for kind, error in errors.items()) or "nothing to compare"
        print(f"{'FAIL' if bad or not errors else 'ok  '} {Path(file).name}: {figures}")
    print(f"{len(files) - failed} of {len(files)} agree (torch {torch.__version__}, float32, CPU)")
    return 1 if failed else 0


def compare(file: Path) -> Errors:
    """The largest relative error of each kind of tensor in one file."""
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {}
        record = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a dict)
    if any(key.endswith(".frames") for key in record):
        return _compare_crops(record)
    state = _below(record, "weights.")
    if not state:
        return {}
    if "tokens" in record:
        return _compare_image(state, metadata, record)
    given = {key: json.loads(value) for key, value in metadata.items()}
    model = load_model(state, heads=given["heads"], global_after=tuple(given["ret"]), labels=())
    return {**_compare_eval(model, record), **_compare_train(model, record, next(iter(formats_of(state)), "ours"))}


def _compare_crops(record: Record) -> Errors:
    """`NAME.frames`, uint8 (frames, height, width, 3), against the recorded test crops `NAME.crop0`, 1 and 2."""
    seen: Record = {}
    for key, frames in record.items():
        name, _, kind = key.rpartition(".")
        if kind == "frames":
            crops = crop_outputs(frames, record[f"{name}.crop0"].shape[-1])
            seen |= {f"{name}.{crop}": pixels for crop, pixels in crops.items()}
    recorded = {key: tensor for key, tensor in record.items() if ".crop" in key}
    return {"crops": max(_relative_error(seen.get(key), tensor) for key, tensor in recorded.items())}


def _compare_image(state: Record, metadata: Mapping[str, str], record: Record) -> Errors:
    """Tokens and pooled embedding of an image transformer, as recorded and as every frame of the armed model's."""
    seen = image_outputs(armed(state, hints_from_metadata(metadata)), record["input"])
    record = {"tokens": record["tokens"], "pooled": record["pooled"], "armed": record["pooled"]}
    return _errors(seen, record, {kind: kind for kind in record})


def _compare_eval(model: UniFormerV2, record: Record) -> Errors:
    kinds = {
        "logits": "eval.logits",
        "pooled": "eval.pooled",
        "features": "eval.features",
        "local": "eval.local.",
        "global": "eval.global.",
    }
    return _errors(eval_outputs(model, record["input"]), record, kinds)


def _compare_train(model: UniFormerV2, record: Record, kind: str) -> Errors:
    if "train.target" not in record:
        return {}
    seen = train_outputs(model, record["input"], record["train.target"])
    seen["train.loss"] = seen["train.loss"].view_as(record["train.loss"])
    recorded = {key: record[key] for key in ("train.logits", "train.loss") if key in record}
    recorded |= _in_our_names(record, "train.grad.", kind) | _in_our_names(record, "train.after.", kind)
    kinds = {
        "train logits": "train.logits",
        "loss": "train.loss",
        "gradients": "train.grad.",
        "statistics": "train.after.",
    }
    return _errors(seen, recorded, kinds)


def _errors(seen: Record, record: Record, kinds: Mapping[str, str]) -> Errors:
    """The largest relative error among the recorded tensors of each kind; infinite where we have none to compare."""
    errors: Errors = {}
    for kind, prefix in kinds.items():
        for name in record:
            if name == prefix or (prefix.endswith(".") and name.startswith(prefix)):
                errors[kind] = max(errors.get(kind, 0.0), _relative_error(seen.get(name), record[name]))
    return errors


def _relative_error(ours: Tensor | None, theirs: Tensor) -> float:
    if ours is None or ours.shape != theirs.shape:
        return float("inf")
    largest = theirs.abs().max().clamp_min(1e-12)
    error = ((ours - theirs).abs().max() / largest).item()
    return error if error == error else float("inf")  # NaN must not pass


def _in_our_names(record: Record, prefix: str, kind: str) -> Record:
    """The tensors below a prefix, renamed where the format is foreign; what no rule knows keeps its name and fails."""
    theirs = _below(record, prefix)
    renamed, unknown = (theirs, []) if kind == "ours" else to_ours(theirs, VIDEO_FORMATS[kind])
    return {prefix + name: tensor for name, tensor in {**renamed, **{key: theirs[key] for key in unknown}}.items()}


def _below(record: Record, prefix: str) -> Record:
    return {key[len(prefix) :]: tensor for key, tensor in record.items() if key.startswith(prefix)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

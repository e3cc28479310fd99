"""What training programs put around the tensors of a model: entries, prefixes, averaged weights beside trained ones.

The same for files and for dictionaries in memory. Pure: names and tensors in, names and tensors out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

from uniformerv2.errors import CheckpointError
from uniformerv2.weights.key_names import FORMAT_KEYS, StateDict, first_of

Weights = Literal["model", "ema"]  # those that were trained, or their exponential moving average

METADATA_KEY = "uniformerv2"  # of the metadata in a torch file of ours

# keys that hold the state dict, the first one found is taken: SlowFast and the official code; mmengine, Lightning and
# open_clip; timm, MAE and DeiT; DINO, whose teacher is the model; DeepSpeed; V-JEPA; averages of several programs
WRAPPERS = (
    *("model_state", "state_dict", "model", "teacher", "student", "module", "target_encoder", "encoder"),
    *("shadow", "shadow_params"),
)
AVERAGED = re.compile(r"(?:^|.*[._])(?:ema|swa|averaged?|shadow)(?:[._].*|$)")

_VIDEO_KEY = re.compile(rf"(|.*?\.)(?:{'|'.join(pattern.pattern for pattern in FORMAT_KEYS.values())})")


class Unwrapped(NamedTuple):
    """Metadata of a file that this package wrote, and the tensors by name."""

    metadata: dict[str, str]
    tensors: StateDict
    report: tuple[str, ...] = ()  # which of several weights were taken
    weights: Weights = "model"  # "ema": averaged weights are still to be found among the names


def unwrap(content: Mapping[Any, Any], source: str, weights: Weights = "model") -> Unwrapped:
    """The state dict in what a training program saved; entries that are no tensors are ignored.

    Raises:
        CheckpointError: no tensors.
    """
    stored = content.get(METADATA_KEY)
    pairs = stored.items() if isinstance(stored, Mapping) else ()
    metadata = {key: value for key, value in pairs if isinstance(key, str) and isinstance(value, str)}
    report: list[str] = []
    state = content
    while found := _entry(state, weights):
        entry, lines, weights = found
        report += lines
        state = state[entry]
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor) and isinstance(key, str)}
    if not tensors:
        keys = ", ".join(str(key) for key in list(content)[:5])
        raise CheckpointError(f"{source}: no tensors found; its entries are {keys or 'none'}; expected a state dict")
    return Unwrapped(metadata, tensors, tuple(report), weights)


def _entry(state: Mapping[Any, Any], weights: Weights) -> tuple[str, list[str], Weights] | None:
    """The entry that holds the state dict, lines for the report, and what is left to choose; None where none does."""
    entries = [key for key, value in state.items() if isinstance(key, str) and isinstance(value, Mapping) and value]
    averaged = [key for key in entries if AVERAGED.fullmatch(key)]
    trained = [key for key in WRAPPERS if key in entries and key not in averaged]
    if "ema_state_dict" in averaged and "message_hub" in state:  # mmengine swaps the two when it saves
        averaged, line = ["state_dict"], "averaged weights: mmengine saves them as state_dict"
        return "state_dict", [line], "model"
    if weights == "ema":
        averaged += [key for key in ("teacher", "target_encoder") if key in trained]
        if averaged:
            return averaged[0], [f"averaged weights: {averaged[0]}"], "model"
    if trained:
        also = f"weights: {trained[0]}; weights='ema' (--weights ema) takes the averaged ones, {first_of(averaged)}"
        return trained[0], [also] if averaged else [], weights
    if averaged and not any(isinstance(value, Tensor) for value in state.values()):
        return averaged[0], [f"averaged weights: {averaged[0]}; there are no others"], "model"
    return None


def is_averaged(prefix: str) -> bool:
    return bool(AVERAGED.fullmatch(prefix.removesuffix(".")))


def no_averaged_weights(source: str) -> CheckpointError:
    return CheckpointError(f"{source}: no averaged weights in it, so weights='ema' (--weights ema) is not possible")


def video_tensors(
    tensors: Mapping[str, Tensor], source: str, weights: Weights = "model"
) -> tuple[StateDict, list[str]]:
    """The tensors of a video model without the prefix that all of them share, and what stands beside them left out.

    Args:
        tensors: in the names of any format of video models, or of none, which are returned as they are.
        source: its name in errors.
        weights: which, where the names of averaged weights have a prefix of their own.

    Returns:
        The tensors, and lines for the report.

    Raises:
        CheckpointError: no averaged weights though they are wanted, or several models.
    """
    prefixes = list(dict.fromkeys(match[1] for key in tensors if (match := _VIDEO_KEY.fullmatch(key))))
    if not prefixes:
        return dict(tensors), []
    averaged = [prefix for prefix in prefixes if is_averaged(prefix)]
    trained = [prefix for prefix in prefixes if prefix not in averaged]
    if weights == "ema" and not averaged:
        raise no_averaged_weights(source)
    choice = averaged if weights == "ema" else trained or averaged
    if len(choice) > 1:
        names = " and ".join(map(repr, choice))
        raise CheckpointError(f"{source}: several models, under {names}; save only the one meant")
    [prefix] = choice
    others = tuple(other for other in prefixes if len(other) > len(prefix))
    inside = {key: value for key, value in tensors.items() if key.startswith(prefix) and not key.startswith(others)}
    report = [f"prefix {prefix!r} taken off"] if prefix else []
    if averaged and trained:
        report += [f"weights: those under {prefix!r}, not those under {first_of(map(repr, {*prefixes} - {prefix}))}"]
        report += [] if weights == "ema" else ["weights='ema' (--weights ema) takes the averaged ones"]
    if left_out := [key for key in tensors if key not in inside and not (others and key.startswith(others))]:
        report += [f"left out: {first_of(left_out)}"]
    return {key.removeprefix(prefix): value for key, value in inside.items()}, report

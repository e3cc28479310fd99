"""Which layer made numbers that are not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from uniformerv2.distributed import Ranks

NOTHING_BAD = "the loss itself"
BAD_CLIPS = "the clips themselves"


def first_bad(model: nn.Module, loss: Callable[[], Tensor | None], ranks: Ranks) -> str:
    """Compute a loss and its gradient once more, and name what turns bad first.

    Args:
        model: its layers are watched; afterwards its gradients mean nothing.
        loss: computes the loss with the model, as it was computed when it turned bad; None if there is none.
        ranks: the processes that do this together, with the same model or parts of it.

    Returns:
        "the clips themselves", "the weights of LAYER", "the output of LAYER", "the gradient at the output of LAYER",
        "the gradient of PARAMETER", or `NOTHING_BAD`: the first of these that is not finite.
    """
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"the weights {name}"
    model.zero_grad()  # what other batches left there may be bad
    found: list[str] = []

    def look_at_clips(_: nn.Module, inputs: Any) -> None:
        if not all(_finite(tensor) for tensor in tensors_of(inputs)):
            found.append(BAD_CLIPS)

    hooks = [model.register_forward_pre_hook(look_at_clips)]
    hooks += [part.register_forward_hook(_output_hook(name, found)) for name, part in model.named_modules() if name]
    try:
        value = loss()
        bad = found or (value is not None and not value.isfinite())
        if not any(ranks.gather(bool(bad))) and value is not None:  # all go backward, or none
            value.backward()
            bad_weights = (name for name, weight in model.named_parameters() if not _finite(weight.grad))
            found += [f"the gradient of {name}" for name in bad_weights]
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else NOTHING_BAD


def _output_hook(name: str, found: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    def look_at_gradient(gradient: Tensor) -> None:
        if not _finite(gradient):
            found.append(f"the gradient at the output of {name}")

    def look(_: nn.Module, __: Any, output: Any) -> None:
        for tensor in tensors_of(output):
            if not _finite(tensor):
                found.append(f"the output of {name}")
            elif tensor.requires_grad:
                tensor.register_hook(look_at_gradient)

    return look


def _finite(tensor: Tensor | None) -> bool:
    return tensor is None or bool(tensor.isfinite().all())


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in what a module takes or returns."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_of(item)

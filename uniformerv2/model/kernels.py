"""How a device computes what the model is made of: one meaning for each function, and the fastest way to it.

| function | on a CPU | on a GPU |
|---|---|---|
| `depthwise_in_time` | a Conv2d of a channels-last view | shifted products |
| `depthwise_in_space_time` | a Conv3d; in training one Conv2d for each frame of the kernel | shifted products |
| `attend` | fused in float32; in bfloat16 as measured, else plain | fused |

Shifted products are the sum over the taps of a kernel, in float32: for each tap the frames, moved by its place, times
its weight. Compiled they are one pass over memory, which is all that so few multiply-adds need; cuDNN's depth-wise
convolutions in bfloat16 take several times as long. The gradient of the input is the same sum with the kernel mirrored,
that of the weight one sum for each tap, for all channels at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from types import FunctionType
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Convolution = Literal["auto", "convolution", "shifts"]
AttentionKernel = Literal["fused", "plain"]

_convolution: Convolution = "auto"


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """function(*inputs), of which only the inputs are kept; the backward pass computes it again.

    A checkpoint stops before its last operation, as only the inputs of that are needed. Where it is a product, as in
    most uses here, only the cheap operations before it are computed twice. A compiler decides by itself what to keep.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False)


# --- depth-wise convolutions


@contextmanager
def convolution_by(way: Convolution) -> Iterator[None]:
    """Inside, depth-wise convolutions are computed in this way on every device; "auto": by the device."""
    global _convolution
    before, _convolution = _convolution, way
    try:
        yield
    finally:
        _convolution = before


def depthwise_in_time(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A depth-wise convolution over frames, with zeros before the first and after the last.

    Args:
        x: (batch, frames, patches, channels), float.
        weight: (channels, 1, taps), an odd number of taps.
        bias: (channels,).

    Returns:
        (batch, frames, patches, channels) of the dtype of x, under autocast of that of autocast.
    """
    if _by_shifts(x):
        # the taps (channels, 1, frames, 1, 1) of (batch, frames, patches, 1, channels)
        return shifted_products(x.unsqueeze(3), weight[..., None, None], bias).squeeze(3)
    # a Conv2d over (frames, patches) of a channels-last view: no copy, and on a CPU faster than shifted multiply-adds
    # and than a Conv3d in channels_last_3d (benchmarks/depthwise.py)
    mixed = F.conv2d(
        x.permute(0, 3, 1, 2), weight.unsqueeze(-1), bias, padding=(weight.shape[-1] // 2, 0), groups=weight.shape[0]
    )
    # (batch, channels, frames, patches) -> (batch, frames, patches, channels)
    return mixed.permute(0, 2, 3, 1)


def depthwise_in_space_time(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A depth-wise convolution of 3 x 3 x 3 over frames, rows and columns, with zeros around them.

    Args:
        x: (batch, frames, rows, columns, channels), float.
        weight: (channels, 1, 3, 3, 3).
        bias: (channels,).

    Returns:
        The shape of x, of its dtype, under autocast of that of autocast.
    """
    if _by_shifts(x):
        return shifted_products(x, weight, bias)
    if x.device.type == "cpu" and torch.is_grad_enabled() and weight.requires_grad:
        return depthwise_by_frames(x, weight, bias)
    # contiguous channels-last tokens are a channels_last_3d tensor already: the permutes copy nothing
    volume = x.contiguous().permute(0, 4, 1, 2, 3)
    return F.conv3d(volume, weight, bias, padding=1, groups=weight.shape[0]).permute(0, 2, 3, 4, 1)


def depthwise_by_frames(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same sum, one Conv2d for each of the three frames: its backward is 2 to 10 times faster on a CPU."""
    plane = partial(_plane, weight=weight)
    centre = plane(x, tap=1, bias=bias)
    if x.shape[1] == 1:
        return centre
    past, future = plane(x[:, :-1], tap=0), plane(x[:, 1:], tap=2)
    # pad the frame axis, fourth from the end
    return centre + F.pad(past, (0,) * 6 + (1, 0)) + F.pad(future, (0,) * 6 + (0, 1))


def _plane(frames: Tensor, *, weight: Tensor, tap: int, bias: Tensor | None = None) -> Tensor:
    # (batch, frames, rows, columns, channels) -> (batch·frames, channels, rows, columns), channels last in memory
    flat = frames.flatten(0, 1).permute(0, 3, 1, 2)
    out = F.conv2d(flat, weight[:, :, tap], bias, padding=1, groups=weight.shape[0])
    return out.permute(0, 2, 3, 1).unflatten(0, frames.shape[:2])


def _by_shifts(x: Tensor) -> bool:
    if _convolution == "auto":
        return x.device.type == "cuda" and (torch.compiler.is_compiling() or can_compile(x.device))
    return _convolution == "shifts"


def shifted_products(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A depth-wise convolution of odd kernels as a sum of shifted products, in float32.

    Args:
        x: (batch, frames, rows, columns, channels).
        weight: (channels, 1, taps in time, in rows, in columns), float32 or as x.
        bias: (channels,).

    Returns:
        The shape of x, of its dtype, under autocast of that of autocast.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    # (channels, 1, frames, rows, columns) -> (frames, rows, columns, channels)
    return _ShiftedProducts.apply(x, weight.squeeze(1).permute(1, 2, 3, 0), bias)


class _ShiftedProducts(torch.autograd.Function):
    """The sum and its gradients, each a compiled function of its own unless the whole model is compiled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, taps)
        ctx.bias_dtype = bias.dtype
        return _compiled(_sum_of_taps)(x, taps, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, taps = ctx.saved_tensors
        [gradient] = gradients
        input_gradient = _compiled(_sum_of_taps)(gradient, taps.flip(0, 1, 2), None)
        tap_gradient, bias_gradient = _compiled(_tap_gradients)(x, gradient, taps.shape[:3])
        return input_gradient, tap_gradient.to(taps.dtype), bias_gradient.to(ctx.bias_dtype)


def _sum_of_taps(x: Tensor, taps: Tensor, bias: Tensor | None) -> Tensor:
    """(batch, frames, rows, columns, channels), taps (frames, rows, columns, channels) -> the shape of x."""
    wide = torch.promote_types(x.dtype, torch.float32)
    total = torch.zeros((), dtype=wide, device=x.device) if bias is None else bias.to(wide)
    for place, moved in _shifted(x, taps.shape[:3]):
        total = total + moved.to(wide) * taps[place].to(wide)
    return total.to(x.dtype)


def _tap_gradients(x: Tensor, gradient: Tensor, taps: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Gradients of the taps (frames, rows, columns, channels) and of the bias (channels,), in float32."""
    given = gradient.to(torch.promote_types(x.dtype, torch.float32))
    sums = [(moved.to(given.dtype) * given).sum((0, 1, 2, 3)) for _, moved in _shifted(x, taps)]
    return torch.stack(sums).view(*taps, x.shape[-1]), given.sum((0, 1, 2, 3))


def _shifted(x: Tensor, taps: Sequence[int]) -> list[tuple[tuple[int, ...], Tensor]]:
    """For each tap its place in the kernel, and what it is multiplied with: x moved, with zeros around."""
    before = [count // 2 for count in taps]
    padded = F.pad(x, (0, 0, before[2], before[2], before[1], before[1], before[0], before[0]))
    frames, rows, columns = x.shape[1:4]
    return [
        ((i, j, k), padded[:, i : i + frames, j : j + rows, k : k + columns])
        for i in range(taps[0])
        for j in range(taps[1])
        for k in range(taps[2])
    ]


# --- functions that are compiled by themselves


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled where something compiles it; a compiler of the whole model sees through it."""
    if torch.compiler.is_compiling():
        return function
    return partial(_call_compiled, function)


@cache
def _compile(function: Callable[..., Any], case: Any) -> Callable[..., Any]:
    """A compiled copy for a case. Each has code of its own: torch.compile gives up after eight variants of one code."""
    assert isinstance(function, FunctionType)
    return torch.compile(FunctionType(function.__code__.replace(), function.__globals__), dynamic=False)


def _call_compiled(function: Callable[..., Any], x: Tensor, *others: Any) -> Any:
    if not can_compile(x.device):
        return function(x, *others)
    case = [(other.dtype, other.shape) if isinstance(other, Tensor) and other.ndim < 5 else None for other in others]
    # compiled code is bound to whether a tensor needs a gradient, which nothing here computes
    inputs = [given.detach() if isinstance(given, Tensor) else given for given in (x, *others)]
    for tensor in inputs:
        if isinstance(tensor, Tensor) and tensor.ndim == x.ndim and tensor.shape[0] == x.shape[0]:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)  # another batch size compiles nothing again
    return _compile(function, (x.device, x.dtype, x.shape[1:], *case))(*inputs)


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile works on a device of CUDA, or on the CPU."""
    return _can_compile(torch.empty(0, device=device).device.index if device.type == "cuda" else None)


@cache
def _can_compile(cuda: int | None) -> bool:
    """Whether torch.compile works on a GPU, or on the CPU: tried once, and said where it does not."""
    device = torch.device("cpu") if cuda is None else torch.device("cuda", cuda)
    try:
        with torch.inference_mode(False), torch.no_grad():
            torch.compile(_probe)(torch.zeros(8, device=device))
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(
            f"torch.compile does not work on {device} ({reason}): depth-wise convolutions take slower kernels; "
            "install a C++ compiler, and for a GPU Triton",
            stacklevel=2,
        )
        return False
    return True


def _probe(x: Tensor) -> Tensor:
    return x * 2 + 1


# --- attention


class AttentionCase(NamedTuple):
    """A class of shapes that one kernel is the fastest for; sizes are rounded up to those of `SIZES`."""

    queries: int
    tokens: int
    dim: int
    training: bool  # with a backward pass

    @classmethod
    def of(cls, queries: int, tokens: int, dim: int, *, training: bool) -> AttentionCase | None:
        """The case of these sizes; None where it is not worth measuring, or has too many tokens for plain products."""
        if queries * tokens * dim < MEASURED_WORK or tokens > PLAIN_TOKENS:
            return None
        return cls(_rounded(queries), _rounded(tokens), _rounded(dim), training)


def _rounded(count: int) -> int:
    return next((size for size in SIZES if count <= size), count)


SIZES = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
MEASURED_WORK = 2**20  # multiply-adds of a head, for its scores
PLAIN_TOKENS = 1024  # beyond, the attention weights take too much memory
AttentionChoices = Mapping[AttentionCase, AttentionKernel]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    bias: Tensor | None = None,
    choices: AttentionChoices | None = None,
) -> Tensor:
    """Softmax attention by the fastest kernel for device, dtype and length.

    Args:
        query: (batch, heads, queries, dim).
        key, value: (batch, heads, tokens, dim).
        scale: factor on the dot products.
        bias: added to the scaled dot products; broadcast to (batch, heads, queries, tokens).
        choices: kernels that were measured on this CPU in bfloat16; what they lack is computed by plain products.

    Returns:
        (batch, heads, queries, dim).
    """
    if _plain_is_faster(query, key, choices or {}):
        inputs = (query, key, value) if bias is None else (query, key, value, bias)
        return recomputed(partial(plain_attention, scale=scale), *inputs)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, *, scale: float) -> Tensor:
    """As `attend`, by two products and a softmax."""
    scaled = query if scale == 1 else query * scale
    scores = scaled @ key.transpose(-1, -2)
    return (scores if bias is None else scores + bias).softmax(-1) @ value


def _plain_is_faster(query: Tensor, key: Tensor, choices: AttentionChoices) -> bool:
    """In bfloat16 on a CPU, unless something else was measured.

    Without AMX fused attention takes 1.5 to 2 times as long there as plain products, its backward 2 to 4 times. With
    AMX it is the faster one without a backward pass (benchmarks/attention.py).
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or key.shape[-2] > PLAIN_TOKENS:
        return False
    if not choices:
        return True
    training = torch.is_grad_enabled() and query.requires_grad
    case = AttentionCase.of(query.shape[-2], key.shape[-2], query.shape[-1], training=training)
    return case is None or choices.get(case, "plain") == "plain"

"""Every way of computing equals the plain one, in values and gradients, compiled and not; models compile whole."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

from models import ARCHITECTURES, randn, small_model
from uniformerv2.model import kernels
from uniformerv2.model.kernels import convolution_by, depthwise_in_space_time, depthwise_in_time
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.model.vit import DropPath

CASES = {
    "time": (depthwise_in_time, (2, 5, 6, 8), (8, 1, 3)),
    "time, 5 taps": (depthwise_in_time, (2, 2, 6, 8), (8, 1, 5)),
    "space and time": (depthwise_in_space_time, (2, 3, 4, 5, 8), (8, 1, 3, 3, 3)),
    "one frame": (depthwise_in_space_time, (1, 1, 2, 3, 8), (8, 1, 3, 3, 3)),
}
VIDEO = {"local_blocks", "temporal_downsample", "mix_class_token", "fusion"}  # what no image transformer has
Results = list[Tensor]


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Nothing is compiled by another test."""

    def forget() -> None:
        kernels._compile.cache_clear()
        kernels._can_compile.cache_clear()
        torch._dynamo.reset()

    forget()
    yield
    forget()


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_can_compile", _Constant(False))


class _Constant:
    def __init__(self, value: bool) -> None:
        self.value = value

    def __call__(self, device: int | None) -> bool:
        return self.value

    def cache_clear(self) -> None:
        pass


def results(function: Callable[..., Tensor], *inputs: Tensor) -> Results:
    """Output and gradients."""
    inputs = tuple(tensor.clone().requires_grad_() for tensor in inputs)
    out = function(*inputs)
    (out * randn(*out.shape, seed=9).bfloat16().to(out)).sum().backward()
    return [out.detach(), *(tensor.grad for tensor in inputs if tensor.grad is not None)]


def case(name: str, dtype: torch.dtype = torch.float32) -> tuple[Callable[..., Tensor], list[Tensor]]:
    function, shape, weight = CASES[name]
    return function, [randn(*size, seed=seed).to(dtype) for seed, size in enumerate((shape, weight, (8,)))]


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", CASES)
def test_shifted_products_are_the_convolution(name: str) -> None:
    function, inputs = case(name)
    expected = results(function, *inputs)
    with convolution_by("shifts"):
        torch.testing.assert_close(results(function, *inputs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", ["time", "space and time"])
def test_bfloat16_is_rounded_once(name: str) -> None:
    function, inputs = case(name, torch.bfloat16)
    expected = results(function, *(tensor.double() for tensor in inputs))
    with convolution_by("shifts"):
        found = results(function, *inputs)
    for ours, exact in zip(found, expected, strict=True):
        assert ours.dtype == torch.bfloat16
        # half a unit in the last place of 8 bits
        assert ((ours.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-5).all()


@pytest.mark.usefixtures("eager")
def test_autocast_computes_in_its_dtype_with_gradients_in_float32() -> None:
    function, inputs = case("space and time")
    with convolution_by("shifts"), torch.autocast("cpu", torch.bfloat16):
        found = results(function, *inputs)
    assert [tensor.dtype for tensor in found] == [torch.bfloat16, *[torch.float32] * 3]
    torch.testing.assert_close(found[2], results(function, *inputs)[2], atol=0.1, rtol=0.05)


def test_kernels_that_are_compiled_by_themselves_are_the_convolution() -> None:
    """By inductor, as users have them, with gradients; and no batch size compiles again."""
    function, (x, *weights) = case("time")
    expected = results(function, x, *weights)
    with convolution_by("shifts"):
        torch.testing.assert_close(results(function, x, *weights), expected, atol=1e-5, rtol=1e-5)
    with convolution_by("shifts"), torch.no_grad(), torch.compiler.set_stance("fail_on_recompile"):
        for batch in (3, 7):
            x = randn(batch, *x.shape[1:])
            torch.testing.assert_close(function(x, *weights), expected_in_time(x, *weights), atol=1e-5, rtol=1e-5)


def expected_in_time(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    with convolution_by("convolution"):
        return depthwise_in_time(x, weight, bias)


def test_without_a_compiler_the_reason_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Callable[..., Tensor]:
        raise torch._inductor.exc.InvalidCxxCompiler

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    function, inputs = case("time")
    with convolution_by("shifts"):
        with pytest.warns(UserWarning, match="does not work on cpu .*install a C"):
            found = function(*inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.testing.assert_close(function(*inputs), found)
    torch.testing.assert_close(found, function(*inputs), atol=1e-5, rtol=1e-5)


def model_results(model: UniFormerV2, clip: Tensor, called: Callable[..., Tensor] | None = None) -> Results:
    model.zero_grad()
    logits = (model if called is None else called)(clip)
    logits.square().mean().backward()
    return [logits.detach(), *(weight.grad for weight in model.parameters() if weight.grad is not None)]


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_are_the_same_by_shifted_products(name: str) -> None:
    model, clip = small_model(name), randn(2, 3, 4, 16, 24)
    expected = model_results(model, clip)
    with convolution_by("shifts"):
        assert_close(model_results(model, clip), expected)


def assert_close(found: Results, expected: Results) -> None:
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5 * max(1.0, plain.abs().max().item()))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_compiled_model_is_one_graph_and_the_same(name: str) -> None:
    """As on a GPU, but for the code that inductor makes of the graph."""
    # no larger than what it proves, as tracing takes the time: all 27 taps once
    own = ARCHITECTURES[name].keys()
    depth = 2 if "fusion" in own else 1
    stages = tuple(range(depth)) if name == "scene" or own & VIDEO else ()
    model = small_model(name, depth=depth, global_after=stages, checkpoint_blocks=1)
    clip = randn(2, 3, 2, 16, 24)
    expected = model_results(model, clip)
    with convolution_by("shifts" if name == "temporal" else "auto"):
        assert_close(model_results(model, clip, torch.compile(model, fullgraph=True, backend="aot_eager")), expected)


@pytest.mark.parametrize("name", ["scene", "temporal"])
def test_a_training_step_is_one_graph_and_the_same(name: str) -> None:
    """Mixup, dropout, drop path, statistics of BatchNorm, recomputation and loss, with the same random numbers."""
    rates = {"head_dropout": 0.3, "global_dropout": 0.3}
    model = small_model(name, depth=1, global_after=(0,), checkpoint_blocks=1, **rates).train()
    for part in model.modules():
        if isinstance(part, DropPath):  # the first block has none
            part.probability = 0.3
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    clip, target = randn(2, 3, 4, 16, 24), torch.tensor([1, 2])

    def loss(clip: Tensor, target: Tensor) -> Tensor:
        mixed = clip.lerp(clip.flip(0), 0.3)
        return torch.nn.functional.cross_entropy(model(mixed).float(), target, label_smoothing=0.1)

    def step(loss: Callable[..., Tensor]) -> Results:
        model.load_state_dict(state)
        model.zero_grad()
        torch.manual_seed(0)
        value = loss(clip, target)
        value.backward()
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        return [value.detach(), *gradients, *(statistic.clone() for statistic in model.buffers())]

    assert_close(step(torch.compile(loss, fullgraph=True, backend="aot_eager")), step(loss))

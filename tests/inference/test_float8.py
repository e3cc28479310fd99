"""Linear layers in e4m3: off by what its three bits of mantissa and the scales of the rows allow, and no more."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from models import randn, randomised, small_model
from uniformerv2 import Preprocessing, RecipeError, optimize
from uniformerv2.inference import precision
from uniformerv2.inference.float8 import Float8Linear, plain_product, quantised, scaled_product, to_float8
from uniformerv2.inference.fold import fold, linear
from uniformerv2.inference.optimize import LIMITS, compare
from uniformerv2.inference.precision import has_fp8, pick_inference_precision
from uniformerv2.model.uniformerv2 import UniFormerV2

# A value m·2^e with 1 <= m < 2 is rounded to steps of 2^(e-3): an error of 2^-3 / sqrt(12) in the mean square. Relative
# to the value, with mantissas spread evenly on a logarithmic scale, the mean of 1/m^2 is 3/8 / ln 2. A product of two
# has both errors, and a sum of products with random signs that of one.
EXPECTED = math.sqrt(2 * (2**-6 / 12) * (3 / 8 / math.log(2)))  # 3.75 %


def layer(rows: int, columns: int, *, bias: bool = True) -> nn.Linear:
    return randomised(nn.Linear(columns, rows, bias=bias))


def rounding(x: Tensor) -> Tensor:
    """The largest error of each value: half a step of e4m3, in the units of its row."""
    unit = x.abs().amax(-1, keepdim=True) / 448
    return torch.maximum(x.abs() * 2**-4, unit * 2**-10) * (1 + 1e-6)


@torch.inference_mode()
def test_the_error_is_that_of_e4m3_with_a_scale_for_each_row() -> None:
    plain, x = layer(96, 256, bias=False), randn(2, 64, 256)
    x *= torch.logspace(-6, 6, 64)[:, None]  # tokens of any size
    plain.weight *= torch.logspace(-3, 3, 96)[:, None]
    found, expected = Float8Linear(plain)(x), plain(x)
    assert found.shape == expected.shape
    weight = plain.weight
    bound = rounding(x) @ weight.abs().t() + (x.abs() + rounding(x)) @ rounding(weight).t()
    assert ((found - expected).abs() <= bound * (1 + 1e-4)).all()
    # in units of what a sum of so many products with random signs is
    unit = x.square().sum(-1).sqrt()[..., None] * weight.square().mean(-1).sqrt()
    error = ((found - expected) / unit).square().mean().sqrt()
    assert error == pytest.approx(EXPECTED, rel=0.1)


def test_zeros_and_a_single_large_value_are_exact() -> None:
    rows = torch.zeros(3, 16)
    rows[1, 2], rows[2] = 3e30, torch.tensor(1e-30)
    values, scale = quantised(rows)
    torch.testing.assert_close(values.float() * scale, rows, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bias", [True, False])
def test_the_product_of_the_processor_is_the_plain_one(bias: bool) -> None:
    fast, x = Float8Linear(layer(32, 48, bias=bias)), randn(5, 48)
    rows, scale = quantised(x)
    inputs = (rows, scale, fast.weight, fast.scale, fast.bias, torch.float32)
    torch.testing.assert_close(scaled_product(*inputs), plain_product(*inputs), rtol=1e-5, atol=1e-5)


def test_a_gpu_is_given_what_its_product_takes() -> None:
    with FakeTensorMode():  # checks types, shapes and strides as a GPU does
        bias = torch.empty(32, dtype=torch.bfloat16, device="cuda")
        fast = Float8Linear(linear(torch.empty(32, 48, device="cuda"), bias))
        out = fast(torch.empty(2, 3, 5, 48, dtype=torch.bfloat16, device="cuda"))
    assert (out.shape, out.dtype, out.device.type) == ((2, 3, 5, 32), torch.bfloat16, "cuda")


def test_layers_of_every_patch_are_rounded_where_their_sizes_allow_it() -> None:
    model = small_model("temporal", width=64, local_reduction=2.0)
    fast = fold(model, to_float8)
    names = {name for name, module in fast.named_modules() if isinstance(module, Float8Linear)}
    block = ("attention.qkv", "attention.proj", "mlp.fc1", "mlp.fc2")
    aggregators = [f"local{number}.{part}" for number in (1, 2) for part in ("reduce", "expand")]
    assert names == {f"backbone.blocks.{number}.{part}" for number in range(3) for part in (*block, *aggregators)}
    comparison = compare(fast, model, [randn(4, 3, 4, 16, 24)])
    assert 1e-4 < comparison.deviation < LIMITS["fp8"].deviation
    narrow = fold(small_model("scene", width=24, heads=2), to_float8)
    assert not any(isinstance(module, Float8Linear) for module in narrow.modules())


def test_fp8_is_refused_where_it_is_not_and_runs_as_any_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("scene", Preprocessing(num_frames=2, size=(16, 16)), image_size=(16, 16))
    with pytest.raises(RecipeError, match="this processor does not multiply fp8 in hardware; take bf16, fp32 or auto"):
        optimize(model, precision="fp8")
    monkeypatch.setattr(precision, "has_fp8", lambda device: True)
    monkeypatch.setattr("uniformerv2.inference.optimize.can_pack", lambda dtype: False)  # as on a GPU
    monkeypatch.setattr("uniformerv2.inference.optimize.compute_in_chunks", lambda part: None)
    fast = optimize(model, precision="fp8", validation_clips=[randn(2, 3, 2, 16, 16)])
    assert isinstance(fast._classify, UniFormerV2)
    kinds = {str(tensor.dtype) for tensor in [*fast._classify.parameters(), *fast._classify.buffers()]}
    assert kinds == {"torch.float8_e4m3fn", "torch.bfloat16", "torch.float32"}
    assert fast.comparison.deviation < LIMITS["fp8"].deviation


@pytest.mark.parametrize(("capability", "has"), [((8, 0), False), ((8, 9), True), ((9, 0), True), ((12, 0), True)])
def test_which_gpus_have_it(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], has: bool) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_fp8(torch.device("cuda")) == has
    if not has:
        with pytest.raises(RecipeError, match="device cuda does not multiply fp8"):
            pick_inference_precision("fp8", torch.device("cuda"))

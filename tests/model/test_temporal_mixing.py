"""What takes the place of the local aggregator's convolution: against its formula, and at the start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import architecture, randn, randomised, small_model
from uniformerv2 import CheckpointError, UniFormerV2, arm, load_model, named_config, save_model
from uniformerv2.model.arming import fit_weights
from uniformerv2.model.config import LocalMixing
from uniformerv2.model.counting import count_multiply_adds, count_parameters
from uniformerv2.model.temporal_mixing import (
    TEMPORAL_MIXING,
    CalibratedConvolution,
    DifferenceConvolution,
    TemporalConvolution,
    TemporalShift,
)
from uniformerv2.model.uniblocks import LocalAggregator
from uniformerv2.weights.convert import convert
from weights.samples import small_vit

CHANNELS, TAPS = 8, 3
OPTIONS: list[LocalMixing] = ["calibrated", "differences", "shift"]


def at_start(option: LocalMixing, plain: TemporalConvolution) -> nn.Module:
    """An untrained option with the weights of a convolution, as far as it has them."""
    mixing = TEMPORAL_MIXING[option](CHANNELS, TAPS)
    mixing.load_state_dict(plain.state_dict(), strict=False)
    return mixing


@pytest.mark.parametrize("frames", [1, 2, 7])
@pytest.mark.parametrize("option", ["calibrated", "differences"])
def test_an_untrained_option_is_the_convolution_to_the_last_digit(option: LocalMixing, frames: int) -> None:
    plain, x = randomised(TemporalConvolution(CHANNELS, TAPS)), randn(2, frames, 6, CHANNELS)
    assert torch.equal(at_start(option, plain)(x), plain(x))


def test_an_untrained_shift_leaves_every_frame_where_it_is() -> None:
    x = randn(2, 4, 6, CHANNELS)
    assert torch.equal(TemporalShift(CHANNELS, 5)(x), x)


@pytest.mark.parametrize("option", ["calibrated", "differences"])
def test_an_untrained_model_is_that_of_the_convolution(option: LocalMixing) -> None:
    plain, clip = small_model("temporal"), randn(2, 3, 5, 16, 24)
    model = UniFormerV2(architecture("temporal", local_mixing=option), plain.preprocessing).eval()
    left_out = model.load_state_dict(plain.state_dict(), strict=False)
    assert not left_out.unexpected_keys
    assert all(".local" in key for key in left_out.missing_keys)
    assert torch.equal(model(clip), plain(clip))
    assert torch.equal(model.forward_features(clip).pooled, plain.forward_features(clip).pooled)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_step_of_training_moves_it_away(option: LocalMixing) -> None:
    plain, x = randomised(TemporalConvolution(CHANNELS, TAPS)), randn(2, 5, 6, CHANNELS)
    mixing = at_start(option, plain)
    before, own = mixing(x).detach(), [name for name, _ in mixing.named_parameters() if name not in ("weight", "bias")]
    for name, parameter in mixing.named_parameters():
        parameter.requires_grad_(name in own)
    (mixing(x) * randn(*x.shape, seed=3)).sum().backward()
    with torch.no_grad():
        for parameter in mixing.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    assert (mixing(x) - before).abs().max() > 1e-3


def calibrated_by_a_loop(mixing: CalibratedConvolution, x: Tensor) -> Tensor:
    """W_t = (1 + g_t) W frame by frame, for one clip (frames, patches, channels)."""
    calibration, frames = mixing.calibration, len(x)
    descriptors = [frame.mean(0) for frame in x]
    clip = calibration.clip.weight @ torch.stack(descriptors).mean(0)
    out = []
    for t in range(frames):
        hidden = calibration.frame.bias + clip
        for tap, seen in enumerate((t - 1, t, t + 1)):
            if 0 <= seen < frames:
                hidden = hidden + calibration.frame.weight[:, :, tap] @ descriptors[seen]
        factors = calibration.factors.weight @ hidden.clamp(min=0) + calibration.factors.bias
        weights = (1 + factors.view(TAPS, CHANNELS)) * mixing.weight[:, 0].T
        mixed = mixing.bias.expand_as(x[t])
        for tap, seen in enumerate((t - 1, t, t + 1)):
            if 0 <= seen < frames:
                mixed = mixed + weights[tap] * x[seen]
        out.append(mixed)
    return torch.stack(out)


def differences_by_a_loop(mixing: DifferenceConvolution, x: Tensor) -> Tensor:
    frames, out = len(x), []
    for t in range(frames):
        mixed = mixing.bias.expand_as(x[t])
        for tap, seen in enumerate((t - 1, t, t + 1)):
            if 0 <= seen < frames:
                change = (x[seen] - x[seen - 1]).abs() if seen else torch.zeros_like(x[0])
                mixed = mixed + mixing.weight[:, 0, tap] * x[seen] + mixing.differences[:, 0, tap] * change
        out.append(mixed)
    return torch.stack(out)


@pytest.mark.parametrize("frames", [1, 2, 7])
@pytest.mark.parametrize(
    ("option", "by_a_loop"), [("calibrated", calibrated_by_a_loop), ("differences", differences_by_a_loop)]
)
def test_an_option_follows_its_formula(option: LocalMixing, by_a_loop: Any, frames: int) -> None:
    mixing = randomised(TEMPORAL_MIXING[option](CHANNELS, TAPS).double())
    x = randn(2, frames, 6, CHANNELS).double()
    torch.testing.assert_close(mixing(x), torch.stack([by_a_loop(mixing, clip) for clip in x]))


@pytest.mark.parametrize("taps", [3, 5])
def test_a_shift_samples_smooth_motion_between_frames(taps: int) -> None:
    """Exact for polynomials of a degree below the taps; the ends of the clip see zeros."""
    mixing = TemporalShift(4, taps).double()
    moved = torch.tensor([-1.0, -0.3, 0.25, 0.9], dtype=torch.float64) * (taps // 2) * 0.99
    with torch.no_grad():
        mixing.shift.copy_((moved / (taps // 2)).atanh())

    def motion(time: Tensor) -> Tensor:
        return 1 + 0.5 * time - 0.2 * time**2

    frames = torch.arange(9, dtype=torch.float64)
    out = mixing(motion(frames).view(1, 9, 1, 1).expand(1, 9, 2, 4))
    inner = slice(taps // 2, 9 - taps // 2)
    expected = motion(frames[inner, None, None] + moved).expand(-1, 2, 4)
    torch.testing.assert_close(out[0, inner], expected)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("option", OPTIONS)
def test_gradients(option: LocalMixing, frames: int) -> None:
    config = architecture("temporal", width=6, heads=1, local_mixing=option)
    local = randomised(LocalAggregator(config)).double().eval()
    names, parameters = zip(*local.named_parameters(), strict=True)

    def aggregate(patches: Tensor, *given: Tensor) -> Tensor:
        return torch.func.functional_call(local, dict(zip(names, given, strict=True)), (patches,))

    patches = randn(1, frames, 2, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(aggregate, (patches, *parameters))


@pytest.mark.parametrize("option", OPTIONS)
def test_under_autocast_it_computes_in_bfloat16(option: LocalMixing) -> None:
    mixing, x = randomised(TEMPORAL_MIXING[option](CHANNELS, TAPS)), randn(2, 5, 6, CHANNELS)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = mixing(x)
    assert out.dtype == torch.bfloat16
    expected = mixing(x)
    assert (out.float() - expected).abs().max() < 0.03 * expected.abs().max()


@pytest.mark.parametrize("option", OPTIONS)
def test_an_armed_model_is_the_image_model_and_its_file_remembers_the_option(
    option: LocalMixing, tmp_path: Path
) -> None:
    clip, image = randn(1, 3, 4, 24, 24), small_vit(width=32, depth=2, hidden=64, patch=8, grid=3)
    images = arm(image, num_classes=3, heads=4, global_after=()).eval()
    fields = {"local_blocks": "attention", "local_mixing": option}
    model = arm(image, num_classes=3, heads=4, global_after=(1,), **fields).eval()
    frames = model.forward_features(clip).frame_embeddings
    torch.testing.assert_close(frames, images.forward_features(clip).frame_embeddings)
    randomised(model)
    save_model(model, tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors", labels=())
    assert again.config.local_mixing == option
    assert torch.equal(again(clip), model(clip))
    with pytest.raises(CheckpointError, match=f"cannot express .*local_mixing='{option}'"):
        convert(tmp_path / "model.safetensors", tmp_path / "official.pyth", to="official", labels=())


@pytest.mark.parametrize("option", ["calibrated", "differences"])
def test_a_checkpoint_goes_on_with_an_option(option: LocalMixing) -> None:
    plain, clip = small_model("temporal"), randn(2, 3, 5, 16, 24)
    state, known = plain.state_dict(), architecture("temporal")
    fitted, [change] = fit_weights(state, known, replace(known, local_mixing=option))
    assert change == f"local mixing {option}: new weights, without effect until they are trained"
    model = UniFormerV2(replace(known, local_mixing=option), plain.preprocessing).eval()
    model.load_state_dict(fitted)
    assert torch.equal(model(clip), plain(clip))
    for before, after in ((option, "convolution"), ("convolution", "shift")):
        with pytest.raises(ValueError, match=f"local_mixing {before} cannot become {after}"):
            fit_weights(fitted, replace(known, local_mixing=before), replace(known, local_mixing=after))


@pytest.mark.parametrize("option", TEMPORAL_MIXING)
def test_the_page_has_the_cost_of_every_option(option: LocalMixing) -> None:
    config = named_config("B/16", "temporal", local_mixing=option, num_classes=174)
    cost = f"| {count_parameters(config) / 1e6:.2f} | {count_multiply_adds(config, 16) / 1e9:.2f} |"
    lines = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith(f"| `{option}` |") and line.endswith(cost)], cost

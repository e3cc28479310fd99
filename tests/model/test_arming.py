"""Weights made to fit another size, patch size or stem."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import randn, randomised
from uniformerv2 import ModelConfig
from uniformerv2.model.arming import fit_weights, inflate_stem, resample_patches
from uniformerv2.model.uniformerv2 import UniFormerV2

CONFIG = ModelConfig(width=16, depth=2, heads=2, patch_size=8, image_size=(16, 16), global_after=(1,), num_classes=3)


def test_inflated_stem_sees_the_middle_frame() -> None:
    weight = randn(4, 3, 2, 2)
    inflated = inflate_stem(weight, 3)
    assert torch.equal(inflated[:, :, 1], weight)
    assert not inflated[:, :, 0].any()
    assert not inflated[:, :, 2].any()
    assert torch.equal(inflate_stem(weight, 1), weight[:, :, None])


def resize(patches: Tensor, size: int) -> Tensor:
    return F.interpolate(patches, size=(size, size), mode="bilinear", antialias=True)


def test_larger_patches_give_the_same_tokens_for_resized_frames() -> None:
    weight, patches = randn(5, 3, 8, 8), randn(7, 3, 8, 8)
    larger = resample_patches(weight, 12)
    assert larger.shape == (5, 3, 12, 12)
    tokens = torch.einsum("nchw,kchw->nk", resize(patches, 12), larger)
    torch.testing.assert_close(tokens, torch.einsum("nchw,kchw->nk", patches, weight), atol=1e-4, rtol=1e-4)


def test_smaller_patches_are_the_least_squares_solution() -> None:
    """The residual w - B'w' is orthogonal to all resized patches."""
    weight = randn(5, 3, 8, 8)
    smaller = resample_patches(weight, 5)
    pixels = resize(torch.eye(64).view(64, 1, 8, 8), 5).flatten(1)  # (old pixels, new pixels): B transposed
    residual = weight - (smaller.flatten(2) @ pixels.T).view_as(weight)
    assert residual.abs().max() > 0.1
    torch.testing.assert_close(resize(residual, 5), torch.zeros(5, 3, 5, 5), atol=1e-4, rtol=0)


def test_weights_that_fit_are_not_copied() -> None:
    state = UniFormerV2(CONFIG).state_dict()
    fitted, changes = fit_weights(state, CONFIG, replace(CONFIG, num_classes=7))
    assert not changes
    assert all(fitted[key].data_ptr() == tensor.data_ptr() for key, tensor in state.items())
    assert resample_patches(state["backbone.patch_embedding.weight"], 8) is state["backbone.patch_embedding.weight"]


@pytest.mark.parametrize("options", [{}, {"relative_bias": True, "position_embedding": False}])
def test_a_model_fitted_to_a_size_is_the_model_called_at_that_size(options: dict[str, bool]) -> None:
    source, size = replace(CONFIG, **options), (24, 40)
    model = randomised(UniFormerV2(source)).eval()
    target = replace(source, image_size=size)
    fitted, changes = fit_weights(model.state_dict(), source, target)
    larger = UniFormerV2(target).eval()
    larger.load_state_dict(fitted)
    clip = randn(1, 3, 2, *size)
    torch.testing.assert_close(larger(clip), model(clip))
    what = "relative biases" if options else "position embedding"
    assert changes == [f"{what} interpolated from 2x2 to 3x5 patches (bicubic)"]


def test_every_change_is_reported() -> None:
    target = replace(CONFIG, patch_size=4, image_size=(16, 16), temporal_downsample=True)
    fitted, changes = fit_weights(UniFormerV2(CONFIG).state_dict(), CONFIG, target)
    assert {key: tensor.shape for key, tensor in fitted.items()} == {
        key: tensor.shape for key, tensor in UniFormerV2(target).state_dict().items()
    }
    assert [change.split()[:3] for change in changes] == [
        ["patch", "embedding", "resampled"],
        ["patch", "embedding", "inflated"],
        ["position", "embedding", "interpolated"],
    ]


def test_a_stem_of_three_frames_cannot_become_one_of_one() -> None:
    source = replace(CONFIG, temporal_downsample=True)
    with pytest.raises(ValueError, match="keep temporal_downsample"):
        fit_weights(UniFormerV2(source).state_dict(), source, CONFIG)

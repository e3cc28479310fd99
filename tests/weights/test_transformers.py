"""Armed but untrained, a video model gives for every frame what the `transformers` module gives for the image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uniformerv2 import arm

transformers = pytest.importorskip("transformers")

# heads are not width / 64, so that they must come from the configuration; images are not square blocks of one patch
SIZES: dict[str, Any] = {
    **{"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3},
    **{"intermediate_size": 80, "image_size": 24, "patch_size": 8},
}
RATIO: dict[str, Any] = {**{key: value for key, value in SIZES.items() if key != "intermediate_size"}, "mlp_ratio": 2}
SHARED_BIAS = {
    **{"use_shared_relative_position_bias": True, "use_absolute_position_embeddings": True},
    **{"use_mean_pooling": False},
}
GATED = {"num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu", "key_bias": True}


def class_token(output: Any) -> Tensor:
    return output.last_hidden_state[:, 0]


def pooled(output: Any) -> Tensor:
    return output.pooler_output


def build(name: str, **fields: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**fields))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Tensor]]] = {
    "clip": (build("CLIPVision", **SIZES), pooled),
    "clip with gelu": (build("CLIPVision", **SIZES, hidden_act="gelu"), pooled),
    "siglip": (build("SiglipVision", **SIZES), pooled),
    "vit": (build("ViT", **SIZES), class_token),
    "deit": (build("DeiT", **SIZES), class_token),
    "mae": (build("ViTMAE", **SIZES, mask_ratio=0.0), class_token),
    "beit": (build("Beit", **SIZES, use_relative_position_bias=True), pooled),
    "beit with shared biases": (build("Beit", **SIZES, **SHARED_BIAS), class_token),
    "dinov2": (build("Dinov2", **RATIO), pooled),
    "dinov2 giant": (build("Dinov2", **RATIO, use_swiglu_ffn=True), pooled),
    "dinov2 with registers": (build("Dinov2WithRegisters", **RATIO, num_register_tokens=2), pooled),
    "dinov3": (build("DINOv3ViT", **SIZES, num_register_tokens=4, rope_theta=50.0), pooled),
    "dinov3 gated": (build("DINOv3ViT", **SIZES, **GATED), pooled),
}


def randomised(make: Callable[[], nn.Module]) -> nn.Module:
    """Every parameter random and not small, so that each one counts; the same ones in every test."""
    torch.manual_seed(0)
    module = make().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.2 + 1 if "norm" in name and name.endswith("weight") else noise * 0.2)
    return module


def clip_of(frames: int) -> Tensor:
    return torch.randn(2, 3, frames, 24, 24, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def by_frame(module: nn.Module, clip: Tensor, embedding: Callable[[Any], Tensor]) -> Tensor:
    kwargs = {"noise": torch.arange(9.0).expand(2, 9)} if "MAE" in type(module).__name__ else {}  # keeps the order
    return torch.stack([embedding(module(frame, **kwargs)) for frame in clip.unbind(2)], 1)


def agree(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("layout", ["scene", "temporal"])
@pytest.mark.parametrize("name", MODELS)
def test_frames_of_a_live_module(name: str, layout: str) -> None:
    make, embedding = MODELS[name]
    module = randomised(make)
    model = arm(module, layout=layout, num_classes=3).eval()  # type: ignore[arg-type]
    clip = clip_of(4)
    seen = clip[:, :, ::2] if layout == "temporal" else clip  # the inflated stem starts from the middle frame
    with torch.no_grad():
        found = model.forward_features(clip).frame_embeddings
    agree(found, by_frame(module, seen, embedding))


GIVEN: dict[str, Any] = {"heads": 3, "norm_eps": 1e-4, "activation": "gelu"}  # what a state dict alone lacks


@pytest.mark.parametrize("name", ["clip with gelu", "vit", "dinov2 giant"])
def test_a_state_dict_with_what_it_lacks(name: str) -> None:
    make, embedding = MODELS[name]
    module = randomised(make)
    for norm in module.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.eps = GIVEN["norm_eps"]
    wrapped = {f"model.{key}": tensor for key, tensor in module.state_dict().items()}
    model = arm(wrapped, num_classes=3, **GIVEN).eval()
    with torch.no_grad():
        agree(model.forward_features(clip_of(2)).frame_embeddings, by_frame(module, clip_of(2), embedding))
    assert any("(transformers" in line and "under model." in line for line in model.loading_report)


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_folder_and_its_file(name: str, tmp_path: Path) -> None:
    """`save_pretrained` writes the names that files on the hub have, which are not those of a live module."""
    make, embedding = MODELS[name]
    module = randomised(make)
    module.save_pretrained(tmp_path)  # type: ignore[operator]
    expected = by_frame(module, clip_of(2), embedding)
    for source in (tmp_path, tmp_path / "model.safetensors"):
        model = arm(source, num_classes=3).eval()
        with torch.no_grad():
            agree(model.forward_features(clip_of(2)).frame_embeddings, expected)


def test_of_a_whole_model_only_the_image_encoder_is_taken() -> None:
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    whole = randomised(build("CLIP", vision_config=SIZES, text_config=text))
    model = arm(whole, num_classes=3).eval()
    with torch.no_grad():
        agree(
            model.forward_features(clip_of(2)).frame_embeddings,
            by_frame(whole.get_submodule("vision_model"), clip_of(2), pooled),
        )
    left_out = next(line for line in model.loading_report if line.startswith("left out"))
    assert "text_model" in left_out
    assert "visual_projection" in left_out


def test_siglip_2_for_images_of_any_shape() -> None:
    fields = {key: value for key, value in SIZES.items() if key != "image_size"}
    module = randomised(build("Siglip2Vision", **fields, num_patches=9))
    clip = clip_of(2)
    # their patches are rows of pixels with the channels last
    patches = clip.unfold(3, 8, 8).unfold(4, 8, 8).permute(0, 2, 3, 4, 5, 6, 1).reshape(2, 2, 9, 192)
    everything, shape = torch.ones(2, 9), torch.tensor([[3, 3]] * 2)
    with torch.no_grad():
        expected = [module(patches[:, frame], everything, shape).pooler_output for frame in range(2)]
        found = arm(module, num_classes=3).eval().forward_features(clip).frame_embeddings
    agree(found, torch.stack(expected, 1))


def test_an_activation_that_is_not_ours_is_refused() -> None:
    from uniformerv2 import CheckpointError

    with pytest.raises(CheckpointError, match="activation 'relu' is none of quick_gelu"):
        arm(randomised(build("ViT", **SIZES, hidden_act="relu")), num_classes=3)

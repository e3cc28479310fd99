"""Arming an image transformer from a file with timm's names."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from uniformerv2 import CheckpointError, arm
from uniformerv2.model.arming import inflate_stem

WIDTH, DEPTH, HEADS, PATCH, SIDE = 32, 2, 4, 8, 3


def timm_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    state = {
        "cls_token": rand(1, 1, WIDTH),
        "pos_embed": rand(1, 1 + SIDE * SIDE, WIDTH),
        "patch_embed.proj.weight": rand(WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": rand(WIDTH),
        "norm.weight": rand(WIDTH),
        "norm.bias": rand(WIDTH),
        "head.weight": rand(10, WIDTH),
        "head.bias": rand(10),
    }
    linears = {
        "attn.qkv": (3 * WIDTH, WIDTH),
        "attn.proj": (WIDTH, WIDTH),
        "mlp.fc1": (128, WIDTH),
        "mlp.fc2": (WIDTH, 128),
    }
    for block in range(DEPTH):
        for norm in ("norm1", "norm2"):
            state |= {f"blocks.{block}.{norm}.{part}": rand(WIDTH) for part in ("weight", "bias")}
        for name, shape in linears.items():
            state |= {f"blocks.{block}.{name}.weight": rand(*shape), f"blocks.{block}.{name}.bias": rand(shape[0])}
    return state


def image_class_token(state: dict[str, Tensor], image: Tensor) -> Tensor:
    """A plain vision transformer, written from its definition: (batch, 3, h, w) -> (batch, width)."""
    batch = image.shape[0]
    x = F.conv2d(image, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH)
    x = torch.cat([state["cls_token"].expand(batch, -1, -1), x.flatten(2).transpose(1, 2)], 1) + state["pos_embed"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    for block in range(DEPTH):
        name = f"blocks.{block}"
        qkv = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv").view(batch, -1, 3, HEADS, WIDTH // HEADS)
        query, key, value = (qkv[:, :, part].transpose(1, 2) for part in range(3))
        weights = (query @ key.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5).softmax(-1)
        x = x + linear((weights @ value).transpose(1, 2).flatten(2), f"{name}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
    return norm(x[:, 0], "norm")


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    path = tmp_path / "vit.safetensors"
    save_file(timm_state(), path, {"heads": str(HEADS), "mean": "[0.1, 0.2, 0.3]", "std": "[0.4, 0.5, 0.6]"})
    return path


@pytest.mark.parametrize("layout", ["scene", "temporal"])
def test_armed_but_untrained_every_frame_is_the_image_models(image_file: Path, layout: str) -> None:
    model = arm(image_file, layout=layout, num_classes=4, labels="abcd").eval()  # type: ignore[arg-type]
    clip = torch.randn(2, 3, 6, 24, 24, generator=torch.Generator().manual_seed(1))
    seen = clip[:, :, ::2] if layout == "temporal" else clip  # the inflated stem starts from the middle frame
    expected = torch.stack([image_class_token(timm_state(), frame) for frame in seen.unbind(2)], 1)
    torch.testing.assert_close(model.forward_features(clip).frame_embeddings, expected, atol=1e-5, rtol=1e-4)
    assert model.labels == ("a", "b", "c", "d")
    assert (model.preprocessing.mean, model.preprocessing.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_another_size_is_interpolated(image_file: Path) -> None:
    model = arm(image_file, num_classes=4, size=(16, 40), num_frames=3)
    assert model.config.image_size == model.preprocessing.size == (16, 40)
    assert model.preprocessing.num_frames == 3
    assert model.backbone.position_embedding.shape == (1 + 2 * 5, WIDTH)
    assert torch.equal(model.backbone.position_embedding[0], timm_state()["pos_embed"][0, 0])


def test_options_reach_the_architecture(image_file: Path) -> None:
    model = arm(image_file, num_classes=4, global_after=(1,), local_blocks="attention", drop_path=0.2)
    assert len(model.global_blocks) == 1
    assert model.backbone.blocks[1].local2 is None
    assert model.backbone.blocks[1].drop_path.probability == pytest.approx(0.2)


def test_inflated_stem_sees_the_middle_frame() -> None:
    weight = torch.randn(4, 3, 2, 2)
    inflated = inflate_stem(weight, 3)
    assert torch.equal(inflated[:, :, 1], weight)
    assert not inflated[:, :, 0].any()
    assert not inflated[:, :, 2].any()


def _without(*keys: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in timm_state().items() if key not in keys}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"a": torch.zeros(1)}, "no image transformer with timm's names"),
        (_without("norm.bias"), "missing: backbone.post_norm.bias"),
        ({**timm_state(), "blocks.0.ls1.gamma": torch.zeros(WIDTH)}, "unexpected: blocks.0.ls1.gamma"),
        ({**timm_state(), "pos_embed": torch.zeros(1, 12, WIDTH)}, "no square grid"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, state: dict[str, Tensor], said: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file(state, path, {"heads": str(HEADS)})
    with pytest.raises(CheckpointError, match=r"other\.safetensors") as error:
        arm(path, num_classes=4)
    assert said in str(error.value)


SYNSETS = {  # ImageNet's own names of the synsets that the sample images are named after
    "n01514668": "cock",
    "n01687978": "agama",
    "n01735189": "garter snake",
    "n01847000": "drake",
    "n01855032": "red-breasted merganser",
    "n02018795": "bustard",
    "n02025239": "ruddy turnstone",
    "n02113978": "Mexican hairless",
    "n02125311": "cougar",
    "n02127052": "lynx",
    "n02231487": "walking stick",
    "n02412080": "ram",
    "n02493509": "titi",
    "n03032252": "cinema",
    "n03062245": "cocktail shaker",
    "n03240683": "drilling platform",
    "n03764736": "milk can",
}


def test_vit_tiny_still_knows_imagenet(shared: Path) -> None:
    """The real file, armed; its own classifier on our class tokens names all 17 sample images."""
    folder = shared / "data" / "vit_tiny_p16_224"
    source = folder / "vit_tiny_patch16_224.safetensors"
    model = arm(source, num_classes=2, layout="temporal", num_frames=1).eval()
    assert (model.config.width, model.config.depth, model.config.heads) == (192, 12, 3)
    state = load_file(source)
    names = (folder / "imagenet_samples" / "Labels.txt").read_text().splitlines()
    images = sorted((folder / "imagenet_samples").glob("*.JPEG"))
    assert len(images) == 17
    for path in images:
        with torch.no_grad():
            token = model.forward_features(_centre_crop(path)).frame_embeddings[0, 0]
        guess = (state["head.weight"] @ token + state["head.bias"]).argmax()
        assert names[guess] == SYNSETS[path.name.split("_")[0]]


def _centre_crop(path: Path) -> Tensor:
    """An image file -> a clip of one frame, uint8 (1, 3, 1, 224, 224)."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    pixels = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    short = min(pixels.shape[-2:])
    size = [round(side * 256 / short) for side in pixels.shape[-2:]]
    pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True).round().to(torch.uint8)
    top, left = ((side - 224) // 2 for side in size)
    return pixels[:, :, None, top : top + 224, left : left + 224]

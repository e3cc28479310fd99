"""Arming an image transformer from a file with timm's names."""

from __future__ import annotations

import json
from pathlib import Path

import av
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from uniformerv2 import CheckpointError, arm
from uniformerv2.weights.download import FileNotOnServerError
from uniformerv2.weights.key_names import StateDict
from weights.samples import linear, small_vit

WIDTH, DEPTH, HEADS, PATCH, SIDE = 32, 2, 4, 8, 3


def small_state() -> StateDict:
    state = small_vit(width=WIDTH, depth=DEPTH, hidden=4 * WIDTH, patch=PATCH, grid=SIDE)
    return {key: 0.3 * tensor for key, tensor in (state | linear("head", 10, WIDTH, rand=torch.randn)).items()}


def image_class_token(state: StateDict, image: Tensor, *, depth: int = DEPTH, heads: int = HEADS) -> Tensor:
    """A plain vision transformer, written from its definition: (batch, 3, h, w) -> (batch, width)."""
    batch, stem = image.shape[0], state["patch_embed.proj.weight"]
    width = stem.shape[0]
    x = F.conv2d(image, stem, state["patch_embed.proj.bias"], stride=stem.shape[-1])
    x = torch.cat([state["cls_token"].expand(batch, -1, -1), x.flatten(2).transpose(1, 2)], 1) + state["pos_embed"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    for block in range(depth):
        name = f"blocks.{block}"
        qkv = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv").view(batch, -1, 3, heads, width // heads)
        query, key, value = (qkv[:, :, part].transpose(1, 2) for part in range(3))
        weights = (query @ key.transpose(-1, -2) / (width // heads) ** 0.5).softmax(-1)
        x = x + linear((weights @ value).transpose(1, 2).flatten(2), f"{name}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
    return norm(x[:, 0], "norm")


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    path = tmp_path / "vit.safetensors"
    save_file(small_state(), path, {"heads": str(HEADS), "mean": "[0.1, 0.2, 0.3]", "std": "[0.4, 0.5, 0.6]"})
    return path


@pytest.mark.parametrize("layout", ["scene", "temporal"])
def test_armed_but_untrained_every_frame_is_the_image_models(image_file: Path, layout: str) -> None:
    model = arm(image_file, layout=layout, num_classes=4, labels="abcd").eval()  # type: ignore[arg-type]
    clip = torch.randn(2, 3, 6, 24, 24, generator=torch.Generator().manual_seed(1))
    seen = clip[:, :, ::2] if layout == "temporal" else clip  # the inflated stem starts from the middle frame
    expected = torch.stack([image_class_token(small_state(), frame) for frame in seen.unbind(2)], 1)
    torch.testing.assert_close(model.forward_features(clip).frame_embeddings, expected, atol=1e-5, rtol=1e-4)
    assert model.labels == ("a", "b", "c", "d")
    assert (model.preprocessing.mean, model.preprocessing.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_another_size_is_interpolated(image_file: Path) -> None:
    model = arm(image_file, num_classes=4, size=(16, 40), num_frames=3)
    assert model.config.image_size == model.preprocessing.size == (16, 40)
    assert model.preprocessing.num_frames == 3
    assert model.backbone.position_embedding.shape == (1 + 2 * 5, WIDTH)
    assert torch.equal(model.backbone.position_embedding[0], small_state()["pos_embed"][0, 0])


def test_options_reach_the_architecture(image_file: Path) -> None:
    model = arm(image_file, num_classes=4, global_after=(1,), local_blocks="attention", drop_path=0.2)
    assert len(model.global_blocks) == 1
    assert model.backbone.blocks[1].local2 is None
    assert model.backbone.blocks[1].drop_path.probability == pytest.approx(0.2)


def _without(*keys: str) -> StateDict:
    return {key: tensor for key, tensor in small_state().items() if key not in keys}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": torch.zeros(1)}, "no image transformer in keys like a; the known names are those of timm"),
        (_without("norm.bias"), "missing: backbone.post_norm.bias"),
        ({**small_state(), "blocks.0.ls1.gamma": torch.zeros(WIDTH)}, "missing: backbone.blocks.0.scale2"),
        ({**small_state(), "blocks.0.attn.q_norm.weight": torch.zeros(8)}, "no place for blocks.0.attn.q_norm.weight"),
        (_without("blocks.1.attn.proj.bias"), "missing: backbone.blocks.1.attention.proj.bias"),
        ({**small_state(), "patch_embed.proj.weight": torch.zeros(WIDTH, 3, 2, 8, 8)}, "load_model reads video models"),
        ({**small_state(), "pos_embed": torch.zeros(1, 12, WIDTH)}, "no square grid"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, state: StateDict, message: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file(state, path, {"heads": str(HEADS)})
    with pytest.raises(CheckpointError, match=r"other\.safetensors") as error:
        arm(path, num_classes=4)
    assert message in str(error.value)


def test_a_size_may_be_one_number_and_patches_may_change(image_file: Path) -> None:
    model = arm(image_file, num_classes=4, size=32, patch_size=16)
    assert model.config.image_size == model.preprocessing.size == (32, 32)
    assert model.backbone.patch_embedding.weight.shape == (WIDTH, 3, 1, 16, 16)
    report = " ".join(model.loading_report)
    assert "resampled from 8 to 16 pixels" in report
    assert "interpolated from 3x3 to 2x2" in report


def test_the_report_says_what_was_recognised_assumed_and_left_out(tmp_path: Path) -> None:
    model = arm({key: tensor.half() for key, tensor in small_state().items()}, num_classes=4, heads=HEADS)
    recognised, assumed, left_out, converted = model.loading_report
    assert recognised.startswith("recognised ViT (timm names): 32 wide, 2 blocks, patches of 8 pixels, images of 24x24")
    assert "mean and std of 0.5" in assumed
    assert "heads" not in assumed
    assert left_out == "left out: head (2 tensors)"
    assert converted == "float16 weights turned into float32"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_options_say_how_the_image_model_is(image_file: Path) -> None:
    """A grid that is no square, heads against the metadata, the mean of the patches instead of the class token."""
    state = {**small_state(), "pos_embed": torch.randn(1, 1 + 2 * 6, WIDTH)}
    model = arm(state, num_classes=4, image_size=(16, 48), heads=2, pool="mean", mean=(0.1, 0.1, 0.1))
    assert (model.config.grid, model.config.heads, model.config.pool) == ((2, 6), 2, "mean")
    assert (model.preprocessing.mean, model.preprocessing.std) == ((0.1, 0.1, 0.1), (0.5, 0.5, 0.5))
    model = arm(image_file, num_classes=4, post_norm=False)
    assert not any("post_norm" in key for key in model.state_dict())
    assert "backbone.post_norm.weight" in model.loading_report[-1]


def test_a_live_module_of_timm_tells_through_its_attributes() -> None:
    module = nn.Module()
    for name, tensor in small_state().items():
        *path, last = name.split(".")
        owner = module
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, nn.ModuleList() if part == "blocks" else nn.Module())
            owner = owner.get_submodule(part)
        owner.register_parameter(last, nn.Parameter(tensor))
    block = module.blocks[0]  # type: ignore[index]
    block.attn.num_heads, block.norm1.eps, block.mlp.act = 2, 0.25, nn.GELU("tanh")
    module.global_pool = "avg"  # type: ignore[assignment]
    module.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (1, 1, 1)}  # type: ignore[assignment]
    config = (model := arm(module, num_classes=4)).config
    assert (config.heads, config.norm_eps, config.activation, config.pool) == (2, 0.25, "gelu_tanh", "mean")
    assert (model.preprocessing.mean, model.preprocessing.std) == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    assert "assumed" not in " ".join(model.loading_report)


def write_folder(folder: Path, *, config: object, name: str) -> None:
    folder.mkdir()
    save_file(small_state(), folder / name)
    file = "open_clip_config.json" if name.startswith("open_clip") else "config.json"
    (folder / file).write_text(json.dumps(config))


def test_repositories_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, out of a folder that stands for the hub; the configuration that belongs to the weights is read."""
    clip = {
        "model_cfg": {"quick_gelu": True, "vision_cfg": {"width": 32, "head_width": 16}},
        "preprocess_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3},
    }
    write_folder(tmp_path / "clip", config=clip, name="open_clip_model.safetensors")
    timm = {"architecture": "vit_x", "global_pool": "avg", "pretrained_cfg": {"mean": [0.3] * 3, "std": [0.4] * 3}}
    write_folder(tmp_path / "vit", config=timm, name="model.safetensors")

    def hub_file(repository: str, file: str) -> Path:
        if not (path := tmp_path / repository.removeprefix("someone/") / file).exists():
            raise FileNotOnServerError("no such file")
        return path

    monkeypatch.setattr("uniformerv2.weights.image_files.hub_file", hub_file)
    model = arm("someone/clip", num_classes=4)
    assert (model.config.heads, model.config.activation, model.preprocessing.mean[0]) == (2, "quick_gelu", 0.1)
    model = arm("someone/vit", num_classes=4, heads=HEADS)
    assert (model.config.pool, model.config.activation, model.preprocessing.std[0]) == ("mean", "gelu", 0.4)
    with pytest.raises(CheckpointError, match=r"someone/nobody: none of model\.safetensors"):
        arm("someone/nobody", num_classes=4)
    with pytest.raises(CheckpointError, match=r"missing\.safetensors: no such file"):
        arm("missing.safetensors", num_classes=4)


def test_weights_in_several_files(tmp_path: Path) -> None:
    state = small_state()
    names = sorted(state)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in halves.items():
        save_file({key: state[key] for key in keys}, tmp_path / file)
    index = {"weight_map": {key: file for file, keys in halves.items() for key in keys}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    model = arm(tmp_path, num_classes=4, heads=HEADS)
    assert torch.equal(model.backbone.blocks[1].attention.proj.weight, state["blocks.1.attn.proj.weight"])
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lists files that are missing: b\.safetensors"):
        arm(tmp_path, num_classes=4, heads=HEADS)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(CheckpointError, match="not readable as JSON"):
        arm(tmp_path, num_classes=4, heads=HEADS)


SYNSETS = {  # ImageNet's own names of the synsets that the sample images are named after
    **{"n01514668": "cock", "n01687978": "agama", "n01735189": "garter snake", "n01847000": "drake"},
    **{"n01855032": "red-breasted merganser", "n02018795": "bustard", "n02025239": "ruddy turnstone"},
    **{"n02113978": "Mexican hairless", "n02125311": "cougar", "n02127052": "lynx", "n02231487": "walking stick"},
    **{"n02412080": "ram", "n02493509": "titi", "n03032252": "cinema", "n03062245": "cocktail shaker"},
    **{"n03240683": "drilling platform", "n03764736": "milk can"},
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


@pytest.mark.parametrize("layout", ["scene", "temporal"])
def test_every_frame_of_a_clip_has_vit_tinys_class_token(shared: Path, layout: str) -> None:
    folder = shared / "data" / "vit_tiny_p16_224"
    source = folder / "vit_tiny_patch16_224.safetensors"
    model = arm(source, num_classes=2, layout=layout).eval()  # type: ignore[arg-type]
    images = sorted((folder / "imagenet_samples").glob("*.JPEG"))[:4]
    clip = torch.cat([_centre_crop(path) for path in images], dim=2)  # four pictures as the frames of a clip
    seen = clip[0, :, ::2] if layout == "temporal" else clip[0]
    with torch.no_grad():
        tokens = model.forward_features(clip).frame_embeddings[0]
        expected = image_class_token(load_file(source), (seen.transpose(0, 1) / 255 - 0.5) / 0.5, depth=12, heads=3)
    assert (tokens - expected).abs().max() <= 1e-5 * expected.abs().max()


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

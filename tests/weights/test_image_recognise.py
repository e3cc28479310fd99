"""Which family a state dict is of, its architecture, and the tensors under our names."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from uniformerv2.errors import CheckpointError
from uniformerv2.model.arming import fit_weights
from uniformerv2.model.config import RotaryEmbedding
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.weights.image_hints import Hints, hints_from_timm_name
from uniformerv2.weights.image_key_names import find_encoder
from uniformerv2.weights.image_recognise import ImageModel, read_image_model
from uniformerv2.weights.key_names import StateDict
from weights.samples import META, clip_state, linear, norm, prefixed, same_tensors, timm_state

LS, GAMMA = "ls{}.gamma", "gamma_{}"
DINOV3: dict[str, Any] = {"registers": 4, "positions": 0, "bias": "none", "scale": GAMMA}
PE: dict[str, Any] = {"norms": ("norm_pre", "norm"), "pool": True}
TURN = 4 * math.pi

# from the papers and the released configurations: state, family, heads, and other fields of the architecture
PUBLISHED: dict[str, tuple[StateDict, str, int, dict[str, Any]]] = {
    "ViT-B/16": (
        timm_state(768, 12, 3072),
        "ViT",
        12,
        {"image_size": (224, 224), "post_norm": True, "pre_norm": False, "activation": "gelu", "norm_eps": 1e-6},
    ),
    "ViT-H/14": (timm_state(1280, 32, 5120, patch=14, grid=16), "ViT", 16, {"depth": 32, "patch_size": 14}),
    "DeiT III-L": (
        timm_state(1024, 24, 4096, positions=196, scale=LS),
        "DeiT III",
        16,
        {"layer_scale": True, "class_token": True, "image_size": (224, 224)},
    ),
    "CLIP ViT-g/14, timm": (
        timm_state(1408, 40, 6144, patch=14, grid=16, norms=("norm_pre", "norm")),
        "CLIP",
        16,
        {"pre_norm": True, "patch_bias": False, "norm_eps": 1e-5, "activation": "gelu"},
    ),
    "OpenAI CLIP L/14@336": (
        prefixed("visual.", clip_state(1024, 24, patch=14, grid=24)) | {"logit_scale": META()},
        "CLIP",
        16,
        {"activation": "quick_gelu", "image_size": (336, 336), "post_norm": True},
    ),
    "open_clip bigG": (
        prefixed("visual.", clip_state(1664, 48, patch=14, grid=16)),
        "CLIP",
        16,
        {"activation": "gelu"},
    ),
    "mmaction2's CLIP encoder": (
        prefixed("backbone.", clip_state(768, 12, post_norm=False)),
        "CLIP",
        12,
        {"post_norm": False, "activation": "quick_gelu"},
    ),
    "SigLIP so400m/14": (
        timm_state(1152, 27, 4304, patch=14, grid=16, class_token=False, pool=True),
        "SigLIP",
        16,
        {"class_token": False, "pool": "attention", "pool_heads": 16, "mlp_ratio": 4304 / 1152},
    ),
    "SigLIP 2 giant, by open_clip": (
        prefixed("visual.trunk.", timm_state(1536, 40, 6144, class_token=False, pool=True))
        | {"text.x.weight": META(1)},
        "SigLIP",
        16,
        {"depth": 40},
    ),
    "DINOv2-g": (
        timm_state(1536, 40, 4096, patch=14, grid=37, scale=LS, gate="packed"),
        "DINOv2",
        24,
        {"gated_mlp": True, "image_size": (518, 518), "register_tokens": 0, "rotary": None},
    ),
    "DINOv2-g with registers": (
        timm_state(1536, 40, 4096, patch=14, grid=37, positions=37 * 37, registers=4, scale=LS, gate="packed"),
        "DINOv2",
        24,
        {"register_tokens": 4},
    ),
    "DINOv3-7B": (
        timm_state(4096, 40, 8192, gate="split", **DINOV3),
        "DINOv3",
        32,
        {
            "rotary": RotaryEmbedding(100.0, (TURN, TURN), offset=0.5, start=-TURN / 2, halves=True),
            "position_embedding": False,
            "norm_eps": 1e-5,
            "gated_mlp": True,
            "pool": "class_token",
        },
    ),
    "DINOv3-H+": (timm_state(1280, 32, 5120, gate="split", **DINOV3), "DINOv3", 20, {"gated_mlp": True}),
    "BEiT-L": (
        timm_state(1024, 24, 4096, positions=0, bias="qv", scale=GAMMA, norms=("fc_norm",), relative_heads=16),
        "BEiT",
        16,
        {"relative_bias": True, "pool": "mean", "pool_norm": True, "post_norm": False, "image_size": (224, 224)},
    ),
    "EVA-02-Ti": (
        timm_state(192, 12, 512, patch=14, grid=24, bias="qv", gate="packed", norms=("fc_norm",)),
        "EVA-02",
        3,
        {"rotary": RotaryEmbedding(span=(16.0, 16.0)), "mlp_norm": False, "pool": "mean", "gated_mlp": True},
    ),
    "EVA-02-CLIP-L": (
        timm_state(
            1024, 24, 2730, patch=14, grid=24, bias="split", gate="split", inner_norms=("attn.norm", "mlp.norm")
        ),
        "EVA-02",
        16,
        {"rotary": RotaryEmbedding(span=(16.0, 16.0)), "attention_norm": True, "mlp_norm": True, "pool": "class_token"},
    ),
    "EVA-g": (
        timm_state(1408, 40, 6144, patch=14, grid=16, bias="qv", norms=("fc_norm",)),
        "EVA",
        16,
        {"rotary": None, "gated_mlp": False, "norm_after": False},
    ),
    "EVA-02-E": (
        timm_state(1792, 64, 15360, patch=14, grid=16, bias="qv"),
        "EVA",
        16,
        {"rotary": None, "gated_mlp": False, "norm_after": True, "pool": "class_token"},
    ),
    "PE-core-B": (
        timm_state(768, 12, 3072, **PE),
        "Perception Encoder",
        12,
        {
            "rotary": RotaryEmbedding(span=(14.0, 14.0), offset=1.0, columns_first=True),
            "pool_heads": 8,
            "pool": "attention",
        },
    ),
    "PE-core-G": (
        timm_state(1536, 50, 8960, patch=14, grid=32, class_token=False, **PE),
        "Perception Encoder",
        16,
        {"rotary": RotaryEmbedding(span=(32.0, 32.0), offset=0.0, columns_first=True), "class_token": False},
    ),
    "PE-lang-L": (
        timm_state(1024, 23, 4096, patch=14, grid=32, norms=("norm_pre",), scale=GAMMA),
        "Perception Encoder",
        16,
        {"post_norm": False, "pool": "class_token"},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_by_their_keys_and_shapes(name: str) -> None:
    state, family, heads, expected = PUBLISHED[name]
    image = read_image_model(state)
    assert (image.family, image.config.heads) == (family, heads)
    assert {field: getattr(image.config, field) for field in expected} == expected
    assert any("heads" in line for line in image.report) == ("BEiT" not in name)  # its biases tell its heads
    fits(image)


def fits(image: ImageModel) -> None:
    """Exactly the tensors of the architecture, of exactly its shapes."""
    with torch.device("meta"):
        model = UniFormerV2(image.config)
    fitted, _ = fit_weights(image.state, image.config, image.config)
    wanted = {key: value.shape for key, value in model.state_dict().items() if key.startswith("backbone.")}
    assert {key: value.shape for key, value in fitted.items()} == wanted


SMALL: dict[str, Any] = {"width": 8, "depth": 2, "hidden": 16, "patch": 2, "grid": 2, "rand": torch.randn}


def small(**options: Any) -> StateDict:
    torch.manual_seed(0)
    return timm_state(**{**SMALL, **options})


def test_separate_projections_become_one_and_absent_biases_zeros() -> None:
    state = small(bias="split", gate="split")
    ours = read_image_model(state, heads=2).state
    block = "backbone.blocks.1"
    query, key, value = ours[f"{block}.attention.qkv.weight"].chunk(3)
    assert torch.equal(query, state["blocks.1.attn.q_proj.weight"])
    assert torch.equal(key, state["blocks.1.attn.k_proj.weight"])
    assert torch.equal(value, state["blocks.1.attn.v_proj.weight"])
    query, key, value = ours[f"{block}.attention.qkv.bias"].chunk(3)
    assert torch.equal(query, state["blocks.1.attn.q_proj.bias"])
    assert not key.any()
    assert torch.equal(value, state["blocks.1.attn.v_proj.bias"])
    gate, value = ours[f"{block}.mlp.fc1.weight"].chunk(2)
    assert torch.equal(gate, state["blocks.1.mlp.fc1_g.weight"])
    assert torch.equal(value, state["blocks.1.mlp.fc1_x.weight"])


def test_tensors_that_stay_as_they_are_are_not_copied() -> None:
    state = small()
    ours = read_image_model(state, heads=2).state
    for name, theirs in (("attention.qkv.weight", "attn.qkv.weight"), ("mlp.fc2.weight", "mlp.fc2.weight")):
        assert ours[f"backbone.blocks.0.{name}"].data_ptr() == state[f"blocks.0.{theirs}"].data_ptr()


def test_a_class_token_without_a_position_gets_zeros() -> None:
    state = small(positions=4, scale=LS)
    positions = read_image_model(state, heads=2).state["backbone.position_embedding"]
    assert not positions[0].any()
    assert torch.equal(positions[1:], state["pos_embed"][0])


def test_the_distillation_token_of_deit_stays_as_a_register_at_its_position() -> None:
    state = small(positions=6) | {"dist_token": torch.randn(1, 1, 8), **linear("head_dist", 5, 8, rand=torch.randn)}
    image = read_image_model(state, heads=2)
    assert (image.family, image.config.register_tokens) == ("DeiT", 1)
    torch.testing.assert_close(
        image.state["backbone.registers"][0], state["dist_token"][0, 0] + state["pos_embed"][0, 1]
    )
    kept = state["pos_embed"][0, [0, 2, 3, 4, 5]]
    assert torch.equal(image.state["backbone.position_embedding"], kept)
    fits(image)


def test_one_table_of_biases_for_all_blocks() -> None:
    state = small(positions=0, bias="qv", scale=GAMMA) | {
        "rel_pos_bias.relative_position_bias_table": torch.randn(12, 2),
        "rel_pos_bias.relative_position_index": torch.zeros(5, 5),
        "mask_token": torch.zeros(1, 1, 8),
        **linear("lm_head", 9, 8, rand=torch.randn),
    }
    image = read_image_model(state)
    assert (image.family, image.config.heads, image.config.pool, image.config.post_norm) == ("BEiT", 2, "mean", True)
    for block in range(2):
        assert torch.equal(
            image.state[f"backbone.blocks.{block}.attention.relative_bias"],
            state["rel_pos_bias.relative_position_bias_table"],
        )
    assert "mask_token" in image.report[-1]
    assert "lm_head (2 tensors)" in image.report[-1]


def renamed(state: StateDict, *names: tuple[str, str]) -> StateDict:
    for old, new in names:
        state = {key.replace(old, new): tensor for key, tensor in state.items()}
    return state


def test_names_of_the_original_repositories() -> None:
    """Of the same weights as with timm's names."""
    dinov3 = small(registers=2, positions=0, scale=LS, gate="split")
    theirs = renamed(
        dinov3, ("reg_token", "storage_tokens"), ("fc1_g", "w1"), ("fc1_x", "w2"), ("mlp.fc2", "mlp.w3")
    ) | {"rope_embed.periods": torch.ones(2), "mask_token": torch.zeros(1, 8), **norm("local_cls_norm", 8, torch.randn)}
    same(read_image_model(theirs, heads=2), read_image_model(dinov3, heads=2), "DINOv3")
    masked = {f"blocks.{i}.attn.qkv.bias_mask": torch.ones(24) for i in range(2)}
    bias = read_image_model(theirs | masked, heads=2).state["backbone.blocks.1.attention.qkv.bias"]
    expected = theirs["blocks.1.attn.qkv.bias"].clone()
    expected[8:16] = 0
    assert torch.equal(bias, expected)

    giant = small(scale=LS, gate="packed")
    same(
        read_image_model(renamed(giant, ("mlp.fc1", "mlp.w12"), ("mlp.fc2", "mlp.w3")), heads=2),
        read_image_model(giant, heads=2),
        "DINOv2",
    )
    registers = small(registers=2, scale=LS)
    same(
        read_image_model(renamed(registers, ("reg_token", "register_tokens")), heads=2),
        read_image_model(registers, heads=2),
        "DINOv2",
    )
    eva = small(bias="split", gate="split", inner_norms=("attn.norm", "mlp.norm"))
    theirs = renamed(
        eva,
        ("attn.norm", "attn.inner_attn_ln"),
        ("mlp.norm", "mlp.ffn_ln"),
        ("attn.q_proj.bias", "attn.q_bias"),
        ("attn.v_proj.bias", "attn.v_bias"),
        ("fc1_g", "w1"),
        ("fc1_x", "w2"),
        ("mlp.fc2", "mlp.w3"),
    ) | {"rope.freqs_cos": torch.ones(4, 4), "blocks.0.attn.rope.freqs_sin": torch.ones(4, 4)}
    same(read_image_model(theirs, heads=2), read_image_model(eva, heads=2), "EVA-02")


def test_perception_encoder_in_its_own_names() -> None:
    timm = small(norms=("norm_pre", "norm"), pool=True, scale=GAMMA)
    theirs = renamed(
        timm,
        ("blocks.", "transformer.resblocks."),
        ("patch_embed.proj", "conv1"),
        ("pos_embed", "positional_embedding"),
        ("cls_token", "class_embedding"),
        ("norm_pre", "ln_pre"),
        ("attn_pool.norm", "attn_pool.layernorm"),
        ("norm1", "ln_1"),
        ("norm2", "ln_2"),
        ("attn.qkv.", "attn.in_proj_"),
        ("attn.proj", "attn.out_proj"),
        ("attn_pool.proj", "attn_pool.attn.out_proj"),
        ("attn_pool.latent", "attn_pool.probe"),
        ("fc1", "c_fc"),
        ("fc2", "c_proj"),
        ("gamma_", "ls_"),
    )
    theirs = {f"{key}.gamma" if ".ls_" in key else key: tensor for key, tensor in theirs.items()}
    theirs = {key.replace("norm.", "ln_post.") if key.startswith("norm.") else key: t for key, t in theirs.items()}
    theirs["class_embedding"] = theirs["class_embedding"][0, 0]
    theirs["positional_embedding"] = theirs["positional_embedding"][0]
    for part in ("weight", "bias"):
        pair = theirs.pop(f"attn_pool.q.{part}"), theirs.pop(f"attn_pool.kv.{part}")
        theirs[f"attn_pool.attn.in_proj_{part}"] = torch.cat(pair)
    theirs = prefixed("visual.", theirs | {"proj": torch.ones(8, 4)}) | {"logit_scale": torch.ones(())}
    found = read_image_model(theirs, heads=2, pool_heads=2)
    same(found, read_image_model(timm, heads=2, pool_heads=2), "Perception Encoder")
    assert found.report[-1] == "left out: logit_scale, visual.proj"


def same(one: ImageModel, other: ImageModel, family: str) -> None:
    assert one.family == other.family == family
    assert one.config == other.config
    assert same_tensors(one.state, other.state)
    fits(one)


def test_of_several_encoders_the_one_that_its_authors_evaluate() -> None:
    online, momentum = small(), small(patch=4)
    moco = prefixed("module.momentum_encoder.", momentum) | prefixed("module.base_encoder.", online)
    image = read_image_model(moco, heads=2)
    assert (image.family, image.config.patch_size) == ("MoCo v3", 2)
    dino = prefixed("student.backbone.", momentum) | prefixed("teacher.backbone.", online)
    dino |= {"teacher.head.last_layer.weight_v": torch.ones(1)}
    image = read_image_model(dino, heads=2)
    assert (image.family, image.config.patch_size) == ("DINO", 2)
    assert "student.backbone" in image.report[-1]


def test_what_a_file_holds_besides_tells_families_of_one_architecture() -> None:
    mae = small() | {"mask_token": torch.ones(1, 1, 8), "decoder_embed.weight": torch.ones(4, 8)}
    mae |= {"decoder_blocks.0.norm1.weight": torch.ones(4), "decoder_pos_embed": torch.ones(1, 5, 4)}
    image = read_image_model(mae, heads=2)
    assert image.family == "MAE"
    assert image.mean == (0.485, 0.456, 0.406)
    assert read_image_model(small() | linear("head", 5, 8, rand=torch.randn), heads=2).family == "ViT"


def test_moco_small_has_twelve_heads() -> None:
    assert read_image_model(prefixed("base_encoder.", timm_state(384, 2, 1536))).config.heads == 12
    assert read_image_model(timm_state(384, 2, 1536)).config.heads == 6


@pytest.mark.parametrize(
    ("state", "options", "message"),
    [
        ({"conv1.weight": META(64, 3, 7, 7), "layer1.0.conv1.weight": META(64, 64, 1, 1)}, {}, "no image transformer"),
        (small(positions=0), {"heads": 2}, "no positions: neither an embedding nor relative biases"),
        (small(positions=0, registers=2, class_token=False), {"heads": 2}, "no positions"),
        (small(positions=8), {"heads": 2}, "8 position embeddings are no square grid; give image_size"),
        (small(), {"heads": 3}, "width 8 is not divisible by heads 3"),
        (small(class_token=False), {"heads": 2, "pool": "class_token"}, "needs a class token"),
        (small(), {"heads": 2, "wings": 2}, "wings"),
        (
            {k: v for k, v in small().items() if ".mlp.fc2" not in k},
            {},
            "backbone.blocks.0.mlp.fc2.weight (as this package calls",
        ),
        (small() | {"rope.freqs": META(2, 4)}, {}, "no place for rope.freqs"),  # learned, unlike EVA's
        (small() | {"blocks.0.attn.gate.weight": META(8, 8)}, {}, "no place for blocks.0.attn.gate.weight"),
    ],
)
def test_what_cannot_be_understood_is_refused(state: StateDict, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=r"^a file: ") as error:
        read_image_model(state, source="a file", **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_norms_behind_the_layers_are_told_by_the_name() -> None:
    hints = hints_from_timm_name("vit_base_patch16_rpn_224")
    assert read_image_model(small(), hints, heads=2).config.norm_after
    assert not read_image_model(small(), heads=2).config.norm_after


def test_rotary_positions_that_only_the_name_tells_are_refused_and_can_be_given() -> None:
    hints = hints_from_timm_name("vit_small_patch16_rope_ape_224")
    with pytest.raises(CheckpointError, match="rotary positions of an unknown kind; give rotary"):
        read_image_model(small(positions=4, scale=GAMMA), hints, heads=2)
    given = RotaryEmbedding(span=(14.0, 14.0))
    assert read_image_model(small(positions=4, scale=GAMMA), hints, heads=2, rotary=given).config.rotary == given


def test_layouts_by_keys_alone() -> None:
    assert find_encoder(prefixed("model.visual.trunk.", small())) == ("timm", "model.visual.trunk.")
    assert find_encoder(clip_state(8, 1)) == ("OpenAI CLIP", "")
    assert find_encoder({"conv1.weight": 0, "bn1.weight": 0}) is None


def test_options_come_before_hints_and_hints_before_what_is_usual() -> None:
    hints = Hints(heads=4, activation="gelu_tanh", pool="mean", norm_eps=0.5, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    image = read_image_model(small(), hints, heads=2)
    config = image.config
    assert (config.heads, config.activation, config.pool, config.norm_eps) == (2, "gelu_tanh", "mean", 0.5)
    assert image.mean == (0.1, 0.2, 0.3)
    assert len(image.report) == 1
    # a configuration that asks for what the tensors cannot do is not followed
    assert read_image_model(small(), Hints(heads=2, pool="attention")).config.pool == "class_token"
    assert read_image_model(small(), Hints(heads=2, image_size=(224, 224))).config.image_size == (4, 4)

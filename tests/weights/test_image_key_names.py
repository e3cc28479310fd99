"""Image encoders of other projects under our names: whatever the names, the same tensors."""

from __future__ import annotations

import torch

from uniformerv2.weights.image_key_names import find_encoder
from uniformerv2.weights.image_recognise import ImageModel, read_image_model
from uniformerv2.weights.key_names import StateDict
from weights.samples import assert_fits, clip_state, linear, norm, prefixed, same_tensors, small_vit

GAMMA, LS = "gamma_{}", "ls{}.gamma"


def test_layouts_by_keys_alone() -> None:
    assert find_encoder(prefixed("model.visual.trunk.", small_vit())) == ("timm", "model.visual.trunk.")
    assert find_encoder(clip_state(8, 1)) == ("OpenAI CLIP", "")
    assert find_encoder({"conv1.weight": 0, "bn1.weight": 0}) is None


def test_separate_projections_become_one_and_absent_biases_zeros() -> None:
    state = small_vit(bias="split", gate="split")
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
    state = small_vit()
    ours = read_image_model(state, heads=2).state
    for name, theirs in (("attention.qkv.weight", "attn.qkv.weight"), ("mlp.fc2.weight", "mlp.fc2.weight")):
        assert ours[f"backbone.blocks.0.{name}"].data_ptr() == state[f"blocks.0.{theirs}"].data_ptr()


def test_a_class_token_without_a_position_gets_zeros() -> None:
    state = small_vit(positions=4, scale=LS)
    positions = read_image_model(state, heads=2).state["backbone.position_embedding"]
    assert not positions[0].any()
    assert torch.equal(positions[1:], state["pos_embed"][0])


def test_the_distillation_token_of_deit_stays_as_a_register_at_its_position() -> None:
    state = small_vit(positions=6) | {"dist_token": torch.randn(1, 1, 8), **linear("head_dist", 5, 8, rand=torch.randn)}
    image = read_image_model(state, heads=2)
    assert (image.family, image.config.register_tokens) == ("DeiT", 1)
    torch.testing.assert_close(
        image.state["backbone.registers"][0], state["dist_token"][0, 0] + state["pos_embed"][0, 1]
    )
    kept = state["pos_embed"][0, [0, 2, 3, 4, 5]]
    assert torch.equal(image.state["backbone.position_embedding"], kept)
    assert_fits(image)


def test_one_table_of_biases_for_all_blocks() -> None:
    state = small_vit(positions=0, bias="qv", scale=GAMMA) | {
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
    dinov3 = small_vit(registers=2, positions=0, scale=LS, gate="split")
    theirs = renamed(
        dinov3, ("reg_token", "storage_tokens"), ("fc1_g", "w1"), ("fc1_x", "w2"), ("mlp.fc2", "mlp.w3")
    ) | {"rope_embed.periods": torch.ones(2), "mask_token": torch.zeros(1, 8), **norm("local_cls_norm", 8, torch.randn)}
    same(read_image_model(theirs, heads=2), read_image_model(dinov3, heads=2), "DINOv3")
    masked = {f"blocks.{i}.attn.qkv.bias_mask": torch.ones(24) for i in range(2)}
    bias = read_image_model(theirs | masked, heads=2).state["backbone.blocks.1.attention.qkv.bias"]
    expected = theirs["blocks.1.attn.qkv.bias"].clone()
    expected[8:16] = 0
    assert torch.equal(bias, expected)

    giant = small_vit(scale=LS, gate="packed")
    same(
        read_image_model(renamed(giant, ("mlp.fc1", "mlp.w12"), ("mlp.fc2", "mlp.w3")), heads=2),
        read_image_model(giant, heads=2),
        "DINOv2",
    )
    registers = small_vit(registers=2, scale=LS)
    same(
        read_image_model(renamed(registers, ("reg_token", "register_tokens")), heads=2),
        read_image_model(registers, heads=2),
        "DINOv2",
    )
    eva = small_vit(bias="split", gate="split", inner_norms=("attn.norm", "mlp.norm"))
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
    timm = small_vit(norms=("norm_pre", "norm"), pool=True, scale=GAMMA)
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
    assert_fits(one)

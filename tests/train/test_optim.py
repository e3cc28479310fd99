from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from models import architecture
from reference.recorded import read_record, video_model
from uniformerv2 import UniFormerV2
from uniformerv2.train.optim import (
    build_optimizer,
    freeze_backbone,
    learning_rate,
    load_optimizer_tensors,
    optimizer_templates,
    optimizer_tensors,
    parameter_groups,
    set_learning_rate,
)
from uniformerv2.train.recipe import Optimization
from uniformerv2.weights.key_names import VIDEO_FORMATS, to_ours


def published_rate(epoch: float, *, base: float, start: float, end: float, warmup: float, epochs: int) -> float:
    """The published schedule, from its definition: epochs are counted with their fractions."""
    along = (epoch - warmup) / (epochs - warmup)
    cosine = end + (base - end) * math.cos(math.pi * along / 2) ** 2
    return cosine if epoch >= warmup else start * (1 - epoch / warmup) + base * epoch / warmup


def test_warm_up_is_linear_and_the_cosine_would_end_with_the_last_epoch() -> None:
    optimization = Optimization(epochs=11, warmup_epochs=1.0, lr=1.0, start_lr=0.2, end_lr=0.4)
    rates = [learning_rate(step, steps_per_epoch=10, optimization=optimization) for step in range(111)]
    assert rates[0] == 0.2
    assert rates[5] == pytest.approx(0.6)  # half of the warm-up
    assert rates[10] == 1.0
    assert rates[109] > 0.4
    assert rates[110] == pytest.approx(0.4)  # the first step that is no longer taken
    # halfway between the peak (step 10) and the end (110) lies the mean of the two rates
    assert rates[60] == pytest.approx(0.7)
    # a third of the way, cos(60 degrees) = 1/2: three quarters of the way up from end_lr
    third = learning_rate(30 + 100, steps_per_epoch=30, optimization=optimization)
    assert third == pytest.approx(0.4 + 0.75 * 0.6)
    assert all(before > after for before, after in itertools.pairwise(rates[10:]))


def test_warm_up_may_end_within_an_epoch() -> None:
    optimization = Optimization(epochs=3, warmup_epochs=0.25, lr=1.0, start_lr=0.0, end_lr=0.0)
    for step in range(9):
        expected = published_rate(step / 3, base=1.0, start=0.0, end=0.0, warmup=0.25, epochs=3)
        assert learning_rate(step, steps_per_epoch=3, optimization=optimization) == pytest.approx(expected)


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    optimization = Optimization(epochs=2, warmup_epochs=0, lr=0.5)
    assert learning_rate(0, steps_per_epoch=3, optimization=optimization) == 0.5


def test_a_run_that_is_all_warm_up_never_exceeds_lr() -> None:
    optimization = Optimization(epochs=1, warmup_epochs=1.0, lr=1.0, start_lr=0.0)
    rates = [learning_rate(step, steps_per_epoch=4, optimization=optimization) for step in range(4)]
    assert rates == [0.0, 0.25, 0.5, 0.75]


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    model.register_parameter("frozen", nn.Parameter(torch.ones(2, 2), requires_grad=False))
    for parameter in model.parameters():
        parameter.data.fill_(2.0)
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer(model, Optimization(lr=0.1, weight_decay=0.5)).step()
    # without a gradient AdamW only multiplies by 1 - lr · weight_decay
    assert model[0].weight.tolist() == [[pytest.approx(2 * (1 - 0.1 * 0.5))] * 3] * 3
    for untouched in (model[0].bias, model[1].weight, model[1].bias, model.frozen):
        assert (untouched == 2).all()


def test_the_step_is_that_of_the_adamw_paper() -> None:
    parameter = nn.Linear(1, 1, bias=False)
    parameter.weight.data.fill_(1.0)
    optimizer = build_optimizer(parameter, Optimization(lr=0.1, weight_decay=0.0, betas=(0.8, 0.9)))
    first = second = 0.0
    expected = 1.0
    for step, gradient in enumerate((0.5, -2.0), start=1):
        parameter.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        first, second = 0.8 * first + 0.2 * gradient, 0.9 * second + 0.1 * gradient**2
        expected -= 0.1 * (first / (1 - 0.8**step)) / (math.sqrt(second / (1 - 0.9**step)) + 1e-8)
    assert parameter.weight.item() == pytest.approx(expected, rel=1e-5)


# --- groups, as the official code makes them of the official names and shapes

OFFICIALLY_FROZEN = ("conv1", "class_embedding", "positional_embedding", "ln_pre", "transformer.resblocks")


@pytest.mark.parametrize("name", ["scene", "frozen", "temporal"])
def test_each_parameter_decays_as_in_the_official_code(name: str) -> None:
    model, shapes = video_model(name), read_record(name)["weights"]
    if name == "frozen":
        freeze_backbone(model)

    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    renamed, unknown = to_ours(tensors, VIDEO_FORMATS["official"])  # keeps the order
    assert not unknown
    ours = {parameter: name for name, parameter in model.named_parameters()}
    official = {}
    for key, our_name in zip(shapes, renamed, strict=True):
        statistics = key.endswith(("running_mean", "running_var", "num_batches_tracked"))
        frozen = name == "frozen" and any(part in key for part in OFFICIALLY_FROZEN)
        if not statistics and not frozen:
            official[our_name] = 0.0 if len(shapes[key]) == 1 else 0.05  # BatchNorm's are one-dimensional, too

    groups = parameter_groups(model, Optimization(weight_decay=0.05))
    found = {ours[parameter]: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert found == official
    assert sum(len(group["params"]) for group in groups) == len(official)  # none twice


# --- layer-wise decay and frozen parts


@pytest.fixture
def small() -> UniFormerV2:
    return UniFormerV2(architecture("clip", local_blocks="attention", register_tokens=2))


def test_a_block_learns_slower_than_the_one_above_and_new_parts_at_full_rate(small: UniFormerV2) -> None:
    optimizer = build_optimizer(small, Optimization(layer_decay=0.5))
    set_learning_rate(optimizer, 16.0)
    names = {parameter: name for name, parameter in small.named_parameters()}
    rates = {names[parameter]: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert rates.keys() == dict(small.named_parameters()).keys()
    for name, rate in rates.items():
        if ".local" in name or not name.startswith("backbone.") or "post_norm" in name:
            assert rate == 16, name
        elif name.startswith("backbone.blocks."):
            assert rate == {"0": 2, "1": 4, "2": 8}[name.split(".")[2]], name
        else:
            assert rate == 1, name
    decays = {names[one]: group["weight_decay"] for group in optimizer.param_groups for one in group["params"]}
    assert decays["backbone.blocks.0.mlp.fc1.weight"] == 0.05
    assert decays["backbone.blocks.0.mlp.fc1.bias"] == 0


def test_without_layer_decay_there_are_two_groups_of_one_rate(small: UniFormerV2) -> None:
    optimizer = build_optimizer(small, Optimization())
    set_learning_rate(optimizer, 0.25)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.25, 0.05), (0.25, 0.0)]


def test_a_frozen_image_transformer_is_not_in_the_optimizer(small: UniFormerV2) -> None:
    freeze_backbone(small)
    before = {name: tensor.clone() for name, tensor in small.named_parameters()}
    optimizer = build_optimizer(small, Optimization(lr=0.1))
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in small.named_parameters():
        new = ".local" in name or not name.startswith("backbone.")
        assert (id(parameter) in held) == parameter.requires_grad == new, name
    small(torch.zeros(1, 3, 4, 16, 16)).sum().backward()
    optimizer.step()
    changed = {name for name, tensor in small.named_parameters() if not tensor.equal(before[name])}
    assert "head.linear.weight" in changed
    assert not any(name.startswith("backbone.") and ".local" not in name for name in changed)


def test_the_state_of_an_optimizer_comes_back_by_name(small: UniFormerV2) -> None:
    small.backbone.patch_embedding.requires_grad_(False)
    optimizer = build_optimizer(small, Optimization())
    small(torch.rand(1, 3, 4, 16, 16)).sum().backward()
    optimizer.step()
    tensors = optimizer_tensors(small, optimizer)
    assert "head.linear.weight exp_avg" in tensors
    assert not any(key.startswith("backbone.patch_embedding") for key in tensors)  # frozen

    other = build_optimizer(small, Optimization(layer_decay=0.5))  # in other groups
    templates = optimizer_templates(small, {key: tensor.shape for key, tensor in tensors.items()})
    for key, template in templates.items():
        template.copy_(tensors[key])
    load_optimizer_tensors(small, other, templates)
    found = optimizer_tensors(small, other)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())
    with pytest.raises(KeyError):
        optimizer_templates(small, {"tail.weight exp_avg": torch.Size([1])})

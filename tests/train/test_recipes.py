"""The published recipes, field by field, against what the official experiments really used."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from uniformerv2.errors import RecipeError
from uniformerv2.model.config import ModelConfig, Preprocessing, named_config
from uniformerv2.train.optim import build_optimizer, learning_rate
from uniformerv2.train.recipe import AugmentationOptions, ModelRecipe, Recipe
from uniformerv2.train.recipes import RECIPES, NamedRecipe, find_recipe
from uniformerv2.train.recipes.base import CLIP
from uniformerv2.weights.labels import DATASETS
from uniformerv2.weights.zoo import ZooEntry, list_models, zoo_entry

PUBLISHED = [entry.name for entry in list_models() if entry.format == "official"]
OWN = [name for name in RECIPES if name.startswith("own-")]


def entry_of(name: str) -> ZooEntry:
    found = zoo_entry(name)
    assert found is not None, name
    return found


@pytest.fixture(scope="module")
def official(shared: Path) -> dict[str, dict[str, Any]]:
    """The official experiments by our names: their groups of settings, flat: {"optim.base_lr": 1e-5, ...}."""
    text = (shared / "facts" / "official_recipes.yaml").read_text()
    recipes = yaml.safe_load(text)["recipes"]
    return {
        our_name(experiment): {
            f"{group}.{key}": value
            for group, values in groups.items()
            if isinstance(values, dict)
            for key, value in values.items()
        }
        | {"model_zoo": groups["model_zoo"]}
        for experiment, groups in recipes.items()
    }


def our_name(experiment: str) -> str:
    """exp/k400/frozen_k400+k710_l14_f8x336 -> frozen-l14-k400-k710-8x336."""
    found = re.fullmatch(r"exp/\w+/(frozen_)?([a-z0-9]+?)(\+k710)?_([bl]1[46])_f?(\d+)x(\d+)", experiment)
    assert found
    frozen, dataset, k710, size, frames, pixels = found.groups()
    return f"{'frozen-' if frozen else ''}{size}-{dataset}{'-k710' if k710 else ''}-{frames}x{pixels}"


def file_name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


# --- what their keys are called here

IMAGE_SIZES = {source: size for size, source in CLIP.items()}
READERS = {"something": "sth", "kinetics": "kinetics_sparse", "moments": "mit", "activitynet": "anet", "hacs": "anet"}


def architecture(named: NamedRecipe) -> ModelConfig:
    """Of the model that a recipe trains, out of the recipe alone."""
    model = named.recipe.model
    if model.checkpoint is not None:
        return ModelConfig(**asdict(entry_of(model.checkpoint).config()) | model.options())
    return named_config(IMAGE_SIZES[model.arm], model.layout, **model.options())


def reader(named: NamedRecipe) -> str:
    return READERS[re.split(r"_|\d", entry_of(named.name).dataset)[0]]


def start(named: NamedRecipe) -> str:
    """Such as k710_uniformerv2_b16_8x224.pyth, what the file is called where it was published."""
    checkpoint = named.recipe.model.checkpoint
    return file_name(entry_of(checkpoint).url) if checkpoint else ""


def per_stage(named: NamedRecipe) -> list[float]:
    config = architecture(named)
    return [config.global_dropout] * len(config.global_after)


MAPPED: dict[str, Callable[[NamedRecipe], Any]] = {
    "model.backbone": lambda named: (
        {768: "uniformerv2_b16", 1024: "uniformerv2_l14"}[architecture(named).width]
        + ("_336" if named.recipe.clip.size == 336 else "")
    ),
    "model.num_classes": lambda named: DATASETS[entry_of(named.name).dataset],
    "model.n_layers": lambda named: len(architecture(named).global_after),
    "model.n_dim": lambda named: architecture(named).width,
    "model.n_head": lambda named: architecture(named).heads,
    "model.mlp_factor": lambda named: architecture(named).global_mlp_ratio,
    "model.return_list": lambda named: list(architecture(named).global_after),
    "model.no_lmhra": lambda named: architecture(named).local_blocks == "none",
    "model.double_lmhra": lambda named: architecture(named).local_blocks in ("none", "attention+mlp"),
    "model.dw_reduction": lambda named: architecture(named).local_reduction,
    "model.temporal_downsample": lambda named: architecture(named).temporal_downsample,
    "model.backbone_drop_path_rate": lambda named: architecture(named).drop_path,
    "model.drop_path_rate": lambda named: architecture(named).global_drop_path,
    "model.mlp_dropout": per_stage,
    "model.cls_dropout": lambda named: architecture(named).head_dropout,
    "model.frozen": lambda named: named.recipe.model.frozen_backbone,
    "model.pretrain": start,
    "model.delete_special_head": lambda named: (
        named.recipe.model.checkpoint is not None and not named.recipe.model.map_head
    ),
    "model.use_checkpoint": lambda named: architecture(named).checkpoint_blocks > 0,
    "model.checkpoint_num": lambda named: [architecture(named).checkpoint_blocks],
    "data.train_dataset": reader,
    "data.test_dataset": reader,
    "data.num_frames": lambda named: named.recipe.clip.num_frames,
    "data.sampling": lambda named: {"segments": "segment-sparse"}[Preprocessing().sampling],
    "data.train_crop_size": lambda named: named.recipe.clip.size,
    "data.test_crop_size": lambda named: named.recipe.clip.size,
    "data.train_jitter_scales_relative": lambda named: list(named.recipe.augmentation.crop_area),
    "data.train_jitter_aspect_relative": lambda named: [
        round(ratio, 4) for ratio in named.recipe.augmentation.crop_aspect
    ],
    "data.random_flip": lambda named: {0.5: True, 0.0: False}[named.recipe.augmentation.flip],
    "data.mean": lambda named: list(named.recipe.clip.mean or ()),
    "data.std": lambda named: list(named.recipe.clip.std or ()),
    "data.channel_order_fed": lambda named: {"rgb": "RGB (decord)", "bgr": "BGR (cv2.imdecode, no swap)"}[
        named.recipe.clip.channel_order or ""
    ],
    "aug.enable": lambda named: named.recipe.augmentation.num_ops > 0,
    "aug.num_sample_repeated_aug": lambda named: named.recipe.augmentation.repeats,
    "aug.aa_type": lambda named: "rand-m{magnitude:g}-n{num_ops}-mstd{magnitude_std}-inc1".format(
        **asdict(named.recipe.augmentation)
    ),
    "aug.re_prob": lambda named: named.recipe.augmentation.erasing,
    "aug.mixup_enable": lambda named: named.recipe.augmentation.mixup + named.recipe.augmentation.cutmix > 0,
    "aug.mixup_alpha": lambda named: named.recipe.augmentation.mixup or None,
    "aug.cutmix_alpha": lambda named: named.recipe.augmentation.cutmix or None,
    "aug.label_smoothing": lambda named: named.recipe.optimization.label_smoothing,
    "optim.optimizer": lambda named: type(optimizer(named)).__name__.lower(),
    "optim.betas": lambda named: list(optimizer(named).defaults["betas"]),
    "optim.eps": lambda named: optimizer(named).defaults["eps"],
    "optim.base_lr": lambda named: named.recipe.optimization.lr,
    "optim.base_lr_scale_num_shards": lambda named: named.recipe.optimization.lr_base_batch is not None,
    "optim.cosine_end_lr": lambda named: named.recipe.optimization.end_lr,
    "optim.warmup_epochs": lambda named: named.recipe.optimization.warmup_epochs,
    "optim.warmup_start_lr": lambda named: named.recipe.optimization.start_lr,
    "optim.max_epoch": lambda named: named.recipe.optimization.epochs,
    "optim.weight_decay": lambda named: named.recipe.optimization.weight_decay,
    "optim.clip_gradient": lambda named: named.recipe.optimization.clip_norm,
    "optim.total_gpus": lambda named: named.gpus,
    "optim.global_batch_videos": lambda named: named.recipe.optimization.batch_size / named.recipe.augmentation.repeats,
    "optim.global_batch_clips_after_repeated_aug": lambda named: named.recipe.optimization.batch_size,
    "optim.amp": lambda named: {"fp16": "fp16 autocast + NativeScaler (train only)"}[
        named.recipe.optimization.precision
    ],
    "optim.ema": lambda named: named.recipe.optimization.ema > 0,
    "optim.seed": lambda named: named.recipe.optimization.seed,
    "test.num_ensemble_views": lambda named: named.recipe.evaluation.clips,
    "test.num_spatial_crops": lambda named: named.recipe.evaluation.crops,
}

TESTED_ELSEWHERE = {  # what is no choice here
    "optim.loss": "cross_entropy",  # tests/tasks/classification/test_task.py
    "optim.lr_policy": "cosine",  # below, step by step
    "optim.cosine_after_warmup": True,
    "optim.zero_wd_1d_param": True,  # tests/train/test_optim.py, parameter by parameter
    "optim.bn_weight_decay": 0.0,
    "test.add_softmax": True,  # the mean of probabilities ranks as their sum: tests/measuring/test_evaluation.py
    "test.ensemble": "sum",
}

PLUMBING = {  # how their code is driven; what it does not use under these settings; how many at a time
    *("data.decoding_backend", "data.sampling_rate_nominal_unused_by_sparse", "data.target_fps", "data.mc"),
    *("data.use_offset_sampling", "data.train_jitter_scales", "data.path_label_separator", "data.num_workers"),
    *("data.label_path_template", "data.image_template", "data.reverse_input_channel"),
    *("aug.re_mode", "aug.re_count", "aug.color_jitter_declared_unused", "aug.interpolation"),
    *("optim.batch_size_per_node", "optim.num_nodes", "optim.gpus_per_node", "optim.per_gpu_batch", "optim.entry"),
    *("test.batch_size_per_node", "test.test_best", "test_sh_diff_vs_run_sh.TRAIN.ENABLE", "model_zoo"),
}

NO_KEY_OF_THEIRS = {  # what they cannot do otherwise, as their code does it
    "post_norm": False,
    "map_head": None,  # with model.delete_special_head
    "weights": "model",
    "layout": None,  # with the architecture
    "local_blocks": "layout",
    "local_mixing": None,
    "temporal_downsample": None,
    "global_after": None,
    "model": None,
    "accumulate": 1,
    "layer_decay": 1.0,
    "compile": "auto",
    "evaluate_every": 1,
    "early_stop": 0,
    "op_probability": 0.5,
    "short_side": 320,
    "fixed_views": 0,
    "cache_features": "none",
}

# key -> recipes that differ, and what of their notes says why
FROM_K710 = re.compile(r"(b16|l14)-k400-k710-.*")
LONG_CLIPS = re.compile(r"l14-k[467]00-k710-(32|64)x.*")
LONG_FROZEN_CLIPS = re.compile(r"frozen-l14-k[467]00-k710-32x336")
DOCUMENTED: list[tuple[str, re.Pattern[str], str]] = [
    ("model.delete_special_head", FROM_K710, "drops the 710-way head"),
    ("test.num_ensemble_views", LONG_CLIPS, "2 x 3 here"),
    ("test.num_ensemble_views", LONG_FROZEN_CLIPS, "4 x 3 here"),
    ("test.num_spatial_crops", LONG_FROZEN_CLIPS, "4 x 3 here"),
    ("model.pretrain", re.compile(r"l14-(anet|hacs)-.*|l14-mit-8x224"), "calls its start k400\\+k710"),
    ("model.pretrain", re.compile(r"l14-mit-8x336"), "never published"),
    ("data.train_dataset", re.compile(r".*-mit-.*"), "trains as kinetics_sparse and tests as mit"),
    ("data.train_dataset", re.compile(r"l14-(anet|hacs)-.*"), "there is no ant"),
    ("data.test_dataset", re.compile(r"l14-(anet|hacs)-.*"), "there is no ant"),
]


def optimizer(named: NamedRecipe) -> torch.optim.Optimizer:
    return build_optimizer(torch.nn.Linear(1, 1), named.recipe.optimization)


def test_there_is_a_recipe_for_each_published_model_and_no_other(official: dict[str, dict[str, Any]]) -> None:
    assert len(PUBLISHED) == 49
    assert set(official) == set(PUBLISHED) == set(RECIPES) - set(OWN)


def test_each_of_their_keys_has_a_meaning_here(official: dict[str, dict[str, Any]]) -> None:
    keys = set().union(*official.values())
    assert keys == set(MAPPED) | set(TESTED_ELSEWHERE) | PLUMBING
    assert len(keys) == len(MAPPED) + len(TESTED_ELSEWHERE) + len(PLUMBING)  # each has one
    for settings in official.values():
        assert {key: settings[key] for key in TESTED_ELSEWHERE} == TESTED_ELSEWHERE
        assert settings["data.reverse_input_channel"] is False  # so that channel_order_fed is what the model sees


def test_each_of_our_fields_is_theirs_or_what_their_code_does() -> None:
    """A field that no key is compared with has its one value in all recipes."""
    for name in PUBLISHED:
        values = {field: value for part in asdict(RECIPES[name].recipe).values() for field, value in part.items()}
        fixed = {field: value for field, value in NO_KEY_OF_THEIRS.items() if field not in ("map_head", "layout")}
        assert {field: values[field] for field in fixed} == fixed
        assert values["layout"] == entry_of(name).layout
        assert values["mix_class_token"] is not values["frozen_backbone"]


def test_the_differences_are_exactly_the_documented_ones(official: dict[str, dict[str, Any]]) -> None:
    expected = {(name, key): note for key, pattern, note in DOCUMENTED for name in PUBLISHED if pattern.fullmatch(name)}
    found = {}
    for name, settings in official.items():
        for key, ours in MAPPED.items():
            theirs = file_name(settings[key]) if key == "model.pretrain" else settings[key]
            if theirs != ours(RECIPES[name]):
                found[name, key] = (theirs, ours(RECIPES[name]))
    assert {place: found[place] for place in found.keys() - expected.keys()} == {}
    assert expected.keys() - found.keys() == set()
    for (name, _), note in expected.items():
        assert any(re.search(note, line) for line in RECIPES[name].notes), (name, note)


def test_views_and_results_are_the_published_ones(official: dict[str, dict[str, Any]]) -> None:
    rows = {
        file_name(link["ckpt"]): link["row"]
        for settings in official.values()
        for link in settings["model_zoo"]
        if len(link["row"]) == 4
    }
    for name in PUBLISHED:
        named, entry = RECIPES[name], entry_of(name)
        file = file_name(entry.url).replace("+", "_")
        if file not in rows:
            assert entry.dataset == "kinetics710"  # for which nothing was published
            assert named.result == ""
            continue
        *_, views, top1 = rows[file]
        evaluation = named.recipe.evaluation
        assert f"{named.recipe.clip.num_frames}x{evaluation.crops}x{evaluation.clips}" == views, name
        assert named.result == f"top-1 {top1} % with views {views}"


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_learning_rate_of_every_step_is_the_published_one(name: str, official: dict[str, dict[str, Any]]) -> None:
    solver = official[name]
    base, end, first = (solver[f"optim.{key}"] for key in ("base_lr", "cosine_end_lr", "warmup_start_lr"))
    warmup, epochs = solver["optim.warmup_epochs"], solver["optim.max_epoch"]

    def cosine(epoch: float) -> float:
        """Of SlowFast with cosine_after_warmup: it begins where the warm-up ends."""
        return end + (base - end) * (math.cos(math.pi * (epoch - warmup) / (epochs - warmup)) + 1) / 2

    optimization = RECIPES[name].recipe.optimization.scaled()
    for steps_per_epoch in (1, 7, 331):
        for step in range(epochs * steps_per_epoch):
            epoch = step / steps_per_epoch
            expected = first + (cosine(warmup) - first) / warmup * epoch if epoch < warmup else cosine(epoch)
            rate = learning_rate(step, steps_per_epoch=steps_per_epoch, optimization=optimization)
            assert rate == pytest.approx(expected, rel=1e-12)


# --- all of them


def test_a_recipe_is_found_by_its_words_in_any_order_and_case() -> None:
    assert find_recipe("k400-B16-8x224") is RECIPES["b16-k400-8x224"]
    for name in RECIPES:
        assert find_recipe(name) is RECIPES[name]
        assert find_recipe("-".join(reversed(name.split("-")))) is RECIPES[name]


def test_a_name_that_is_none_is_told_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"'b16-k400-16x224'; did you mean .*b16-k400-8x224"):
        find_recipe("b16-k400-16x224")


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_line_can_show_each_recipe(name: str) -> None:
    recipe = RECIPES[name].recipe
    assert AugmentationOptions.of(recipe.augmentation).build() == recipe.augmentation
    title, *notes = RECIPES[name].lines()
    assert title.startswith(f"{name}: ")
    assert all("\n" not in line for line in (title, *notes))


def test_own_small_vit_is_what_train_does_unasked_because_that_was_tried() -> None:
    recipe = RECIPES["own-small-vit"].recipe
    assert recipe == Recipe(ModelRecipe(arm=recipe.model.arm))


def test_own_recipes_say_whether_they_were_tried() -> None:
    assert len(OWN) == 9
    tried = {name for name in OWN if RECIPES[name].notes[0].startswith("tried: ")}
    assert tried == {"own-small-vit"}
    assert all(RECIPES[name].notes[0].startswith("not tried: ") for name in OWN if name not in tried)


def test_finding_a_recipe_imports_no_torch() -> None:
    code = "import sys, uniformerv2.train.recipes as named; assert named.RECIPES and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- docs/recipes.md


def row(named: NamedRecipe) -> str:
    """Of the table of published recipes."""
    model, rates, entry = named.recipe.model, named.recipe.optimization, entry_of(named.name)
    origin = model.checkpoint or "CLIP"
    if model.checkpoint:
        origin += ", head mapped" if model.map_head else ", new head"
    cells = [
        named.name,
        origin,
        f"{rates.lr:.1e}".replace(".0", "").replace("e-0", "e-"),
        f"{rates.batch_size}",
        f"{rates.epochs} ({rates.warmup_epochs:g})",
        f"{model.checkpoint_blocks}" if model.checkpoint_blocks else "",
        f"{named.gpus}",
        f"{named.recipe.evaluation.crops} x {named.recipe.evaluation.clips}",
        f"{entry.top1}" if entry.top1 else "",
    ]
    return f"| {' | '.join(cells)} |"


def test_the_documented_table_is_that_of_the_recipes() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text().splitlines()
    documented = [line for line in lines if line.startswith(("| b16-", "| l14-", "| frozen-"))]
    assert documented == [row(RECIPES[name]) for name in RECIPES if name not in OWN]
    for name in OWN:
        assert any(line.startswith(f"| {name} ") for line in lines), name

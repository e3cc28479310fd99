"""A probe from videos to a checkpoint like any other."""

from __future__ import annotations

import json
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import interrupt
from models import randn
from uniformerv2 import Probed, ProbeRecipe, arm, evaluate, load_model, probe
from uniformerv2.errors import AnnotationError, RecipeError
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.probing import fitting
from uniformerv2.probing.run import probed_model
from uniformerv2.probing.stacked import probe_parameters


@pytest.fixture(scope="module")
def recipe(image_model: Path) -> ProbeRecipe:
    return ProbeRecipe(
        **{"arm": str(image_model), "num_frames": 4, "size": 32, "epochs": 5, "batch_size": 4},
        **{"learning_rates": (3e-3, 3e-2), "weight_decays": (0.0, 0.4)},
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture(scope="module")
def probed(colours: Path, recipe: ProbeRecipe, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Probed:
    return probe(colours, recipe, tmp_path_factory.mktemp("probes") / "probe", workers=0, feature_cache=cache)


def assert_measured_as_it_says(probed: Probed) -> None:
    found = evaluate(probed.checkpoint, probed.checkpoint.parent / "held_out.csv", workers=0)
    assert (found.top1, found.loss) == (probed.best.top1, pytest.approx(probed.best.loss, rel=1e-5))


def test_the_checkpoint_is_an_ordinary_model_as_good_as_the_probe_says(probed: Probed, image_model: Path) -> None:
    assert [(one.learning_rate, one.weight_decay) for one in probed.tried] == [
        *((3e-3, 0.0), (3e-3, 0.4)),
        *((3e-2, 0.0), (3e-2, 0.4)),
    ]
    assert probed.best == min(probed.tried, key=lambda one: (-one.top1, one.loss))
    assert probed.best.loss < 1.0  # of three classes: log 3 without learning
    assert_measured_as_it_says(probed)
    model = load_model(probed.checkpoint)
    assert (model.labels, model.config.global_after) == (("blue", "green", "red"), (2,))
    backbone = arm(image_model, num_classes=3, size=32).backbone.state_dict()
    assert all(torch.equal(tensor, backbone[name]) for name, tensor in model.backbone.state_dict().items())
    written = json.loads((probed.checkpoint.parent / "probe.json").read_text())
    assert written["best"] in written["settings"]
    assert (len(written["settings"]), written["held_out_videos"], written["recipe"]["epochs"]) == (4, 3, 5)


def test_settings_together_learn_what_each_learns_alone_from_the_same_tokens(
    probed: Probed, colours: Path, recipe: ProbeRecipe, cache: Path, tmp_path: Path, encoded: list[int]
) -> None:
    for one in probed.tried:
        single = replace(recipe, learning_rates=(one.learning_rate,), weight_decays=(one.weight_decay,))
        alone = probe(colours, single, tmp_path / "alone", workers=0, feature_cache=cache, overwrite=True)
        assert alone.best.loss == pytest.approx(one.loss, rel=1e-3)  # Adam enlarges what rounding does
        assert alone.best.top1 == one.top1
    assert not encoded


def test_the_same_seed_gives_the_same_probe(
    probed: Probed, colours: Path, recipe: ProbeRecipe, cache: Path, tmp_path: Path
) -> None:
    again = probe(colours, recipe, tmp_path / "again", workers=0, feature_cache=cache)
    assert again.tried == probed.tried
    assert again.checkpoint.read_bytes() == probed.checkpoint.read_bytes()
    other = probe(colours, replace(recipe, seed=1), tmp_path / "other", workers=0)
    assert other.tried != probed.tried


def test_a_killed_probe_goes_on_with_the_tokens_that_it_had(
    probed: Probed,
    colours: Path,
    recipe: ProbeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    encoded: list[int],
) -> None:
    counting = UniFormerV2.encode
    with monkeypatch.context() as patched:
        patched.setattr(
            UniFormerV2, "encode", lambda self, clip: counting(self, clip) if sum(encoded) < 8 else interrupt()
        )
        with pytest.raises(KeyboardInterrupt):
            probe(colours, recipe, tmp_path / "probe", workers=0)
    assert sum(encoded) == 8
    assert probe(colours, recipe, tmp_path / "probe", workers=0).tried == probed.tried
    assert sum(encoded) == 2 * 12 + 3  # two views of each training video and one of the others


def test_mirrored_clips_are_learned_as_what_they_show(
    colours: Path, recipe: ProbeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "videos").mkdir()
    for label, colour in (("go left", "red"), ("go right", "green"), ("wait", "blue")):
        (tmp_path / "videos" / label).symlink_to(colours / colour)
    labels: dict[bool, list[int]] = {True: [], False: []}
    losses = fitting.stacked_losses
    for flip, seen in labels.items():
        monkeypatch.setattr(
            fitting,
            "stacked_losses",
            lambda logits, label, seen=seen: seen.extend(label.tolist()) or losses(logits, label),
        )
        probe(tmp_path / "videos", replace(recipe, flip=flip), tmp_path / f"{flip}", workers=0)
    pairs = set(zip(labels[True], labels[False], strict=True))
    assert pairs == {(0, 0), (0, 1), (1, 0), (1, 1), (2, 2)}


def test_the_view_of_a_held_out_video_is_none_that_a_training_took(
    colours: Path, recipe: ProbeRecipe, tmp_path: Path, encoded: list[int]
) -> None:
    once = replace(recipe, epochs=1, fixed_views=1)
    for name, held in (("one", "*0.mp4\n*1.mp4\n"), ("other", "*2.mp4\n*3.mp4\n*4.mp4\n")):
        encoded.clear()
        listed = tmp_path / f"{name}.txt"
        listed.write_text(held)
        probe(colours, once, tmp_path / name, holdout_list=listed, workers=0, feature_cache=tmp_path / "tokens")
        assert sum(encoded) == 15


def test_local_blocks_of_a_checkpoint_stay_as_they_were_trained(
    checkpoint: Path, colours: Path, recipe: ProbeRecipe, tmp_path: Path
) -> None:
    of_video = replace(recipe, arm=None, checkpoint=str(checkpoint), num_frames=None, size=None, global_after=(0, 1))
    probed = probe(colours, of_video, tmp_path / "probe", workers=0)
    assert_measured_as_it_says(probed)
    before, after = load_model(checkpoint), load_model(probed.checkpoint)
    assert (before.config.local_blocks, after.config.global_after) == ("attention+mlp", (0, 1))
    assert after.preprocessing == before.preprocessing
    kept = before.backbone.state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in after.backbone.state_dict().items())


@pytest.mark.parametrize("differences", [False, True])
def test_only_temporal_differences_tell_a_clip_from_its_reversal(recipe: ProbeRecipe, differences: bool) -> None:
    model = probed_model(replace(recipe, temporal_differences=differences), ("blue", "green", "red"))
    for parameter in probe_parameters(model).values():
        parameter.data += 0.1 * randn(*parameter.shape)
    clip = randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model(clip), model(clip.flip(2)), atol=1e-5) != differences


def test_what_cannot_be_is_refused_in_a_line(
    probed: Probed, colours: Path, recipe: ProbeRecipe, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(
        match: str, output: Path = tmp_path / "new", kind: type[Exception] = RecipeError, **options: Any
    ) -> None:
        changes = options.pop("changes", {})
        with pytest.raises(kind, match=match):
            probe(colours, replace(recipe, **changes), output, workers=0, feature_cache=cache, **options)

    folder = probed.checkpoint.parent
    refused("has a probe; replace it with --overwrite", folder)
    refused("holds other files and no probe", colours)
    refused("nothing is held out of 15 videos", kind=AnnotationError, holdout=0)
    listed = tmp_path / "listed.txt"
    listed.write_text("red0.mp4\nred1.mp4\n")
    refused("the 2 held-out videos are all of class 'red'", kind=AnnotationError, holdout_list=listed)
    refused("no such model: global_after must be .* below depth 3", changes={"global_after": (7,)})
    assert not (tmp_path / "new").exists()
    refused("all 1 settings have diverged", changes={"learning_rates": (1e30,), "weight_decays": (0.0,)})
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9, 100))
    refused("need .* GB in .*: make room", changes={"seed": 5})


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({}, "choose one of an image transformer"),
        ({"arm": "a", "checkpoint": "b"}, "choose one of an image transformer"),
        ({"arm": "a", "learning_rates": ()}, "learning_rates must be positive numbers"),
        ({"arm": "a", "weight_decays": (-0.1,)}, "weight_decays must be numbers from 0"),
        ({"arm": "a", "fixed_views": 0}, "fixed_views must be positive, got 0"),
        ({"arm": "a", "global_after": ()}, "global_after needs a block"),
    ],
)
def test_impossible_recipes(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        ProbeRecipe(**fields)

"""`uniformerv2 train`; recipes have tests of their own."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open

from helpers import Run, assert_refused, files_below
from uniformerv2.data.sources import read_annotations


def test_prints_the_recipe_a_line_per_epoch_and_the_result(
    uniformerv2: Run, colours: Path, tiny: list[object], tmp_path: Path
) -> None:
    status, output, errors = uniformerv2(
        "train",
        colours,
        "--output",
        tmp_path / "run",
        *tiny,
        "--epochs",
        2,
        "--warmup-epochs",
        0.5,
        "--no-flip",
        "--verbose",
    )
    assert status == 0
    assert "12 training videos of 3 classes, 3 held out" in errors
    assert "epochs 2, batch_size 4, lr 0.002" in errors
    *epochs, result = output.splitlines()
    assert [line[:9] for line in epochs] == ["epoch 1/2", "epoch 2/2"]
    assert "of 3 held-out videos right" in result
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert recipe["augmentation"]["flip"] == 0.0
    assert recipe["optimization"]["warmup_epochs"] == 0.5
    assert recipe["optimization"]["compile"] is False  # what auto means on a CPU
    assert (recipe["clip"]["num_frames"], recipe["clip"]["size"]) == (4, 32)


def test_flags_reach_the_recipe(uniformerv2: Run, colours: Path, tiny: list[object], tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text("red3.mp4\nblue0.mp4\n")
    status, _, errors = uniformerv2(
        *("train", colours, "--output", tmp_path / "run", *tiny, "--epochs", 1, "--warmup-epochs", 0),
        *("--holdout-list", tmp_path / "held.txt", "--seed", 7, "--layout", "scene", "--global-after", 0, 2),
        *("--local-blocks", "attention", "--temporal-downsample", "True", "--precision", "fp32"),
    )
    assert status == 0, errors
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert recipe["model"]["local_blocks"] == "attention"
    assert recipe["model"]["global_after"] == [0, 2]
    assert recipe["optimization"]["seed"] == 7
    assert {row.path.name for row in read_annotations(tmp_path / "run" / "held_out.csv")} == {"red3.mp4", "blue0.mp4"}
    with safe_open(tmp_path / "run" / "last.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    expected = {"local_blocks": "attention", "temporal_downsample": True, "global_after": [0, 2]}
    assert {name: config[name] for name in expected} == expected


def test_an_existing_run_is_resumed_with_its_options_or_replaced_on_demand(
    uniformerv2: Run, colours: Path, tiny: list[object], tmp_path: Path
) -> None:
    command = ["train", colours, "--output", tmp_path / "run", *tiny, "--warmup-epochs", 1]
    assert uniformerv2(*command, "--epochs", 1)[0] == 0
    status, output, _ = uniformerv2(*command, "--epochs", 1, "--resume")
    assert status == 0
    assert "of 3 held-out videos right" in output
    before = files_below(tmp_path)
    for options, parts in ((["--resume"], ["epochs 1 is now 2"]), ([], ["--resume", "--overwrite"])):
        assert_refused(uniformerv2(*command, "--epochs", 2, *options), tmp_path / "run", *parts)
        assert files_below(tmp_path) == before

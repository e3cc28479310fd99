"""`uniformerv2 train`; recipes have tests of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from helpers import assert_error_line, files_below
from uniformerv2.data.sources import read_annotations

Run = Callable[..., tuple[int, str, str]]


def test_prints_the_recipe_a_line_per_epoch_and_the_result(
    uniformerv2: Run, colours: Path, tiny: list[object], tmp_path: Path
) -> None:
    status, output, errors = uniformerv2(
        "train", colours, "--output", tmp_path / "run", *tiny, "--epochs", 2, "--warmup-epochs", 0.5, "--no-flip"
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
    assert (config["local_blocks"], config["temporal_downsample"], config["global_after"]) == (
        "attention",
        True,
        [0, 2],
    )


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
        status, _, errors = uniformerv2(*command, "--epochs", 2, *options)
        assert status == 2
        assert_error_line(errors, tmp_path / "run", *parts)
        assert files_below(tmp_path) == before


def test_data_that_cannot_be_learned(uniformerv2: Run, colours: Path, tiny: list[object], tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    (one / "red").symlink_to(colours / "red")
    for data in (one, tmp_path / "absent", tmp_path):
        status, _, errors = uniformerv2("train", data, "--output", tmp_path / "run", *tiny)
        assert status == 2
        assert_error_line(errors, data)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--epochs", "0"], "epochs"),
        (["--holdout", "1.5"], "holdout"),
        (["--size", "33"], "33"),
        (["--device", "nonsense"], "nonsense"),
        (["--resume"], "recipe.json"),
        (["--resume", "--overwrite"], "contradict"),
        (["--model", "B/16"], "--arm"),
        (["--global-after", "7"], "7"),
        (["--crop-area", "0.9", "0.1"], "crop_area"),
        (["--num-ops", "-1"], "num_ops"),
        (["--holdout-list", "absent.txt"], "absent.txt"),
    ],
)
def test_options_that_make_no_sense(
    uniformerv2: Run, colours: Path, tiny: list[object], tmp_path: Path, arguments: list[str], part: str
) -> None:
    status, output, errors = uniformerv2("train", colours, "--output", tmp_path / "run", *tiny, *arguments)
    assert (status, output) == (2, "")
    assert_error_line(errors, part)
    assert not (tmp_path / "run").exists()

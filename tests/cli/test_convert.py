"""`uniformerv2 convert` and `uniformerv2 info` on checkpoints of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers import Run
from uniformerv2 import ModelConfig, Preprocessing, UniFormerV2, load_model, save_model

CONFIG = ModelConfig(width=64, depth=2, heads=2, patch_size=8, image_size=(16, 16), global_after=(0,), num_classes=174)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    labels = [f"action {number}" for number in range(174)]
    model = UniFormerV2(CONFIG, Preprocessing(size=(16, 16)), labels, "a guess")
    save_model(model, tmp_path / "ours.safetensors", origin="a test")
    return tmp_path / "ours.safetensors"


def test_convert_writes_each_format_and_says_so(ours: Path, tmp_path: Path, uniformerv2: Run) -> None:
    official, mmaction2, back = tmp_path / "a.pyth", tmp_path / "b.pth", tmp_path / "c.safetensors"
    assert (
        f"{official}: written in the official format" in uniformerv2("convert", ours, official, "--to", "official")[1]
    )
    assert uniformerv2("convert", official, mmaction2, "--to", "mmaction2")[0] == 0
    assert uniformerv2("convert", mmaction2, back, "--to", "ours")[0] == 0
    first, last = load_model(ours), load_model(back)
    assert (last.config, last.labels, last.label_note) == (first.config, first.labels, "a guess")
    assert all(torch.equal(last.state_dict()[key], tensor) for key, tensor in first.state_dict().items())


def test_what_no_key_tells_can_be_given(ours: Path, tmp_path: Path, uniformerv2: Run) -> None:
    bare, out = tmp_path / "bare.pyth", tmp_path / "out.safetensors"
    uniformerv2("convert", ours, bare, "--to", "official")
    torch.save({"model_state": torch.load(bare, weights_only=True)["model_state"]}, bare)
    options = ["--to", "ours", "--dataset", "sthv2", "--heads", 2, "--global-after", 0]
    status, output, _ = uniformerv2("convert", bare, out, *options)
    assert status == 0
    assert "given: heads 2, global_after (0,)" in output
    model = load_model(out)
    assert model.config == CONFIG
    assert model.preprocessing.channel_order == "bgr"
    assert model.labels[0] != "action 0"


def test_info_of_a_foreign_file_says_what_it_assumed(ours: Path, tmp_path: Path, uniformerv2: Run) -> None:
    path = tmp_path / "sthv2_8x16.pyth"
    uniformerv2("convert", ours, path, "--to", "official")
    torch.save(torch.load(path, weights_only=True)["model_state"], path)
    status, message, _ = uniformerv2("info", path)
    assert status == 0
    assert "official checkpoint" in message
    assert "recognised: width 64, 2 blocks, patches of 8" in message
    assert "assumed: 1 heads of 64 channels" in message
    assert "from the file name: 8 frames" in message
    assert "labels (174): the order of the labels is unconfirmed" in message
    assert "format              official" in message


def test_info_of_ours_says_what_it_holds(ours: Path, uniformerv2: Run) -> None:
    status, message, _ = uniformerv2("info", ours)
    assert status == 0
    assert "everything is from its metadata" in message
    assert "labels (174): a guess" in message
    assert "origin              a test" in message

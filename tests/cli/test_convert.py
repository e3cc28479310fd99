"""`uniformerv2 convert` and `uniformerv2 info` on checkpoints of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from uniformerv2 import ModelConfig, Preprocessing, UniFormerV2, load_model, save_model
from uniformerv2.cli import main

CONFIG = ModelConfig(width=64, depth=2, heads=2, patch_size=8, image_size=(16, 16), global_after=(0,), num_classes=174)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    labels = [f"action {number}" for number in range(174)]
    model = UniFormerV2(CONFIG, Preprocessing(size=(16, 16)), labels, "a guess")
    save_model(model, tmp_path / "ours.safetensors", origin="a test")
    return tmp_path / "ours.safetensors"


def test_convert_writes_each_format_and_says_so(ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    official, mmaction2, back = tmp_path / "a.pyth", tmp_path / "b.pth", tmp_path / "c.safetensors"
    assert main(["convert", str(ours), str(official), "--to", "official"]) == 0
    assert f"{official}: written in the official format" in capsys.readouterr().out
    assert main(["convert", str(official), str(mmaction2), "--to", "mmaction2"]) == 0
    assert main(["convert", str(mmaction2), str(back), "--to", "ours"]) == 0
    first, last = load_model(ours), load_model(back)
    assert (last.config, last.labels, last.label_note) == (first.config, first.labels, "a guess")
    assert all(torch.equal(last.state_dict()[key], tensor) for key, tensor in first.state_dict().items())


def test_what_no_key_tells_can_be_given(ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare, out = tmp_path / "bare.pyth", tmp_path / "out.safetensors"
    main(["convert", str(ours), str(bare), "--to", "official"])
    state = torch.load(bare, weights_only=True)["model_state"]
    torch.save({"model_state": state}, bare)
    options = ["--to", "ours", "--dataset", "sthv2", "--heads", "2", "--global-after", "0"]
    assert main(["convert", str(bare), str(out), *options]) == 0
    assert "given: heads 2, global_after (0,)" in capsys.readouterr().out
    model = load_model(out)
    assert model.config == CONFIG
    assert model.preprocessing.channel_order == "bgr"
    assert model.labels[0] != "action 0"


def test_a_file_that_cannot_be_converted_ends_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.pth").write_bytes(b"nothing")
    assert main(["convert", str(tmp_path / "x.pth"), str(tmp_path / "y"), "--to", "ours"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {tmp_path / 'x.pth'}: an unknown format")
    assert message.count("\n") == 1
    assert not (tmp_path / "y").exists()


def test_info_of_a_foreign_file_says_what_it_assumed(
    ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sthv2_8x16.pyth"
    main(["convert", str(ours), str(path), "--to", "official"])
    torch.save(torch.load(path, weights_only=True)["model_state"], path)
    capsys.readouterr()
    assert main(["info", str(path)]) == 0
    message = capsys.readouterr().out
    assert "official checkpoint" in message
    assert "recognised: width 64, 2 blocks, patches of 8" in message
    assert "assumed: 1 heads of 64 channels" in message
    assert "from the file name: 8 frames" in message
    assert "labels (174): the order of the labels is unconfirmed" in message
    assert "format              official" in message


def test_info_of_ours_says_what_it_holds(ours: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(ours)]) == 0
    message = capsys.readouterr().out
    assert "everything is from its metadata" in message
    assert "labels (174): a guess" in message
    assert "origin              a test" in message

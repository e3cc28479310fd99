"""`--labels FILE` and `--weights ema` of every command that loads a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import assert_error_line
from uniformerv2 import load_model
from weights.samples import RELEASED, foreign_state

NAMES = ("red", "green", "blue", "жёлтый", "[x] of [y]", "a, b", "seven")
STATE = foreign_state(replace(RELEASED, num_classes=len(NAMES)))


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A file of the official code's names, for seven classes that no file tells; with averaged weights."""
    averaged = {key: tensor * 1.5 for key, tensor in STATE.items()}
    torch.save({"model_state": STATE, "ema_state": averaged}, tmp_path / "own.pyth")
    return tmp_path / "own.pyth"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.txt"
    path.write_text("\ufeff" + "\r\n".join(NAMES) + "\n\n", encoding="utf-8")
    return path


def commands(checkpoint: Path, video: Path, data: Path, output: Path) -> dict[str, list[object]]:
    return {
        "predict": ["predict", checkpoint, video, "--json"],
        "timeline": ["timeline", checkpoint, video, "-o", output, "--json"],
        "stream": ["stream", checkpoint, video, "--json"],
        "evaluate": ["evaluate", checkpoint, data, "-o", output / "e.json", "--workers", 0],
        "features": ["features", checkpoint, data, "-o", output / "f.npz", "--workers", 0],
        "info": ["info", checkpoint],
        "convert": ["convert", checkpoint, output / "ours.safetensors", "--to", "ours"],
    }


@pytest.mark.parametrize("command", commands(*[Path()] * 4))
def test_labels_come_from_a_file(
    command: str, foreign: Path, labels: Path, video: Path, colours: Path, tmp_path: Path,
    uniformerv2: Callable[..., tuple[int, str, str]],
) -> None:  # fmt: skip
    (tmp_path / "out").mkdir()
    arguments = commands(foreign, video, colours, tmp_path / "out")[command]
    status, output, errors = uniformerv2(*arguments)
    if command in ("info", "convert", "features"):  # which need none
        assert status == 0
        assert command == "features" or "--labels FILE" in output
    else:
        assert status == 2
        assert_error_line(errors, foreign, "7 classes", "--labels FILE")
    status, output, errors = uniformerv2(*arguments, "--labels", labels)
    assert status == 0, errors
    if command == "convert":
        assert load_model(tmp_path / "out" / "ours.safetensors").labels == NAMES
    elif command == "info":
        assert all(f"{number:<6}{name}" in output for number, name in enumerate(NAMES))
    elif command not in ("features", "evaluate"):
        found: dict[str, Any] = json.loads(output.splitlines()[0])
        assert set(found["labels"]) < set(NAMES)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"red\ngreen\n", "2 labels given for a head of 7 classes"),
        (b"red\n\ngreen\n", "labels.txt:2: an empty line"),
        (b"red\ngreen\nred\n", "labels.txt:3: 'red' is the name of line 1 too"),
        ("café\ncafe\u0301\n".encode(), "labels.txt:2: 'cafe\u0301' is the name of line 1 too"),
        ("grün\n".encode("latin-1"), "labels.txt: not UTF-8 (at byte 2)"),
        (None, "labels.txt: no labels can be read from it"),
    ],
)
def test_a_file_that_is_no_list_of_labels_is_refused(
    text: bytes | None, reason: str, foreign: Path, video: Path, uniformerv2: Callable[..., tuple[int, str, str]]
) -> None:
    path = foreign.parent / "labels.txt"
    if text is not None:
        path.write_bytes(text)
    status, _, errors = uniformerv2("predict", foreign, video, "--labels", path)
    assert status == 2
    assert_error_line(errors, reason)


def test_averaged_weights_are_taken_by_commands(
    foreign: Path, labels: Path, video: Path, uniformerv2: Callable[..., tuple[int, str, str]]
) -> None:
    options = ("--labels", labels)
    shown = [uniformerv2("info", foreign, *options, "--weights", weights)[1] for weights in ("model", "ema")]
    assert "weights: model_state; weights='ema' (--weights ema) takes the averaged ones, ema_state" in shown[0]
    assert "averaged weights: ema_state" in shown[1]
    trained, averaged = (
        json.loads(uniformerv2("predict", foreign, video, "--json", *options, "--weights", weights)[1])
        for weights in ("model", "ema")
    )
    assert trained["scores"] != averaged["scores"]
    torch.save(STATE, foreign.parent / "plain.pyth")
    _, _, errors = uniformerv2("info", foreign.parent / "plain.pyth", "--weights", "ema")
    assert_error_line(errors, "plain.pyth: no averaged weights in it")


@pytest.mark.parametrize(("classes", "dataset"), [(101, "ucf101"), (51, "hmdb51")])
def test_a_number_of_classes_that_many_data_sets_have_is_no_evidence(
    classes: int, dataset: str, tmp_path: Path, video: Path, uniformerv2: Callable[..., tuple[int, str, str]]
) -> None:
    state = foreign_state(replace(RELEASED, num_classes=classes))
    torch.save(state, tmp_path / "food.pyth")
    torch.save(state, tmp_path / f"{dataset}_8x24.pyth")
    status, output, errors = uniformerv2("predict", tmp_path / "food.pyth", video)
    assert status == 0
    assert "class " in output
    assert f"note: no labels: {dataset} has {classes} classes too" in errors
    assert "--labels FILE" in errors
    for known in (load_model(tmp_path / f"{dataset}_8x24.pyth"), load_model(state, dataset=dataset)):
        assert len(known.labels) == classes

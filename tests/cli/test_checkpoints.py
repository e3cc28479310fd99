"""Checkpoints on the command line: what they carry, their heads, and files that are none."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers import Payload, Run, as_kinetics, assert_refused
from uniformerv2 import load_model, save_model
from uniformerv2.weights.labels import class_list


def test_head_takes_a_part_of_kinetics_710(uniformerv2: Run, checkpoint: Path, video: Path, tmp_path: Path) -> None:
    model = as_kinetics(load_model(checkpoint), class_list("kinetics710", order="mmaction2"))
    save_model(model, tmp_path / "model.safetensors")
    manifest = tmp_path / "videos.csv"
    manifest.write_text(f"path,label\n{video},yoga\n")
    status, _, errors = uniformerv2(
        "evaluate", tmp_path / "model.safetensors", manifest, "--workers", 0, "--head", "k600"
    )
    assert (status, errors) == (0, "")
    result = json.loads((tmp_path / "model.k600.videos.1x1.json").read_text())
    assert (len(result["classes"]), result["top1"]) == (600, 1.0)
    command = ["predict", tmp_path / "model.safetensors", video, "--head", "k400", "--json", "--top-k", 400]
    status, output, errors = uniformerv2(*command)
    assert (status, errors) == (0, "")
    ranked = json.loads(output)["labels"]
    assert ranked[0] == "yoga"
    assert set(ranked) == set(class_list("kinetics400", order="mmaction2"))


def test_what_is_not_certain_of_the_labels_is_said_once(
    uniformerv2: Run, checkpoint: Path, video: Path, tmp_path: Path
) -> None:
    held_out = checkpoint.with_name("held_out.csv")
    model = load_model(checkpoint)
    model.label_note = "the order is inferred"
    checkpoint = tmp_path / "uncertain.safetensors"
    save_model(model, checkpoint)
    assert uniformerv2("predict", checkpoint, video, video)[2] == "note: the order is inferred\n"
    output = tmp_path / "result.json"
    errors = uniformerv2("evaluate", checkpoint, held_out, "--workers", 0, "--output", output)[2]
    assert errors == "note: the order is inferred\n"


def test_info_shows_what_the_checkpoint_carries(uniformerv2: Run, checkpoint: Path) -> None:
    status, output, _ = uniformerv2("info", checkpoint)
    assert status == 0
    for part in ("num_frames", "(32, 32)", "blue", "green", "red", "attention+mlp", "trained on colours"):
        assert part in output


def broken(good: Path, foreign: Path, folder: Path) -> Iterator[Path]:
    """Files that are no checkpoint, or not of the kind of `good`, and a path without a file."""
    yield folder / "absent"
    for name, content in (("empty", b""), ("text", b"this is no checkpoint"), ("foreign", foreign.read_bytes())):
        (folder / name).write_bytes(content)
        yield folder / name
    (folder / "folder").mkdir()
    yield folder / "folder"
    (folder / "pickle").write_bytes(pickle.dumps(Payload(folder / "owned")))
    yield folder / "pickle"
    torch.save({"weight": Payload(folder / "owned")}, folder / "torch pickle")
    yield folder / "torch pickle"
    with safe_open(good, "pt") as file:  # metadata of one architecture, tensors of another
        metadata = file.metadata()
    state = load_file(good)
    del state[next(name for name in state if "blocks.1" in name)]
    save_file(state, folder / "incomplete", metadata)
    yield folder / "incomplete"


@pytest.mark.parametrize("command", ["predict", "evaluate", "info", "train"])
def test_checkpoints_that_are_none_or_do_not_fit(
    uniformerv2: Run,
    checkpoint: Path,
    image_model: Path,
    colours: Path,
    video: Path,
    tiny: list[object],
    tmp_path: Path,
    command: str,
) -> None:
    files = (image_model, checkpoint) if command == "train" else (checkpoint, image_model)
    for path in broken(*files, tmp_path):
        if command == "info" and path.name == "incomplete":
            continue  # it reads no weights
        arguments = {
            "predict": [path, video],
            "evaluate": [path, colours, "--output", tmp_path / "result"],
            "info": [path],
            "train": [colours, "--output", tmp_path / "result", *tiny[2:], "--arm", path],
        }
        assert_refused(uniformerv2(command, *arguments[command]), path)
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "result").exists()

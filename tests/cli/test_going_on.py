"""`train --checkpoint`: what goes on of a model of one's own, and `fine_tune(checkpoint=...)` alike."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers import Run, coloured, write_video
from uniformerv2 import Annotation, fine_tune, load_model
from uniformerv2.data.manifest import write_manifest
from uniformerv2.data.sources import read_annotations

# a learning rate that leaves the weights as they are to four digits
STILL = ["--epochs", 1, "--warmup-epochs", 0, "--batch-size", 4, "--workers", 0, "--lr", 1e-6, "--precision", "fp32"]


@pytest.fixture
def other_classes(colours: Path, tmp_path: Path) -> Path:
    """A manifest without green, and with blinking, which the colours do not have."""
    rows = [row for row in read_annotations(colours) if row.label != "green"]
    for take in range(3):
        write_video(tmp_path / f"blinking{take}.mp4", coloured([0, 1] * 6, seed=take))
        rows.append(Annotation(tmp_path / f"blinking{take}.mp4", "blinking"))
    write_manifest(tmp_path / "videos.csv", rows)
    return tmp_path / "videos.csv"


def head_rows(file: Path) -> dict[str, Tensor]:
    model = load_model(file)
    return dict(zip(model.labels, model.head.linear.weight, strict=True))


def same(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, atol=1e-4)


def test_the_head_frames_and_size_of_a_checkpoint_go_on(
    uniformerv2: Run, colours: Path, checkpoint: Path, tmp_path: Path
) -> None:
    status, output, errors = uniformerv2(
        "train", colours, "--checkpoint", checkpoint, "--output", tmp_path / "run", *STILL
    )
    assert status == 0, errors
    assert "head: all 3 classes kept" in errors
    assert "3 of 3 held-out videos right" in output  # as before: nothing is forgotten
    before, after = head_rows(checkpoint), head_rows(tmp_path / "run" / "last.safetensors")
    assert all(same(after[label], row) for label, row in before.items())
    clip = json.loads((tmp_path / "run" / "recipe.json").read_text())["clip"]
    assert (clip["num_frames"], clip["size"]) == (4, 32)


def test_rows_of_classes_that_stay_are_kept_and_others_drawn(
    uniformerv2: Run, other_classes: Path, checkpoint: Path, tmp_path: Path
) -> None:
    status, _, errors = uniformerv2(
        *("train", other_classes, "--checkpoint", checkpoint, "--output", tmp_path / "run", *STILL),
        *("--num-frames", 2, "--frozen-backbone", "--layout", "scene"),
    )
    assert status == 0, errors
    assert "head: 2 of 3 classes kept; 1 new (blinking); 1 left out (green)" in errors
    before, after = head_rows(checkpoint), head_rows(tmp_path / "run" / "last.safetensors")
    assert list(after) == ["blinking", "blue", "red"]
    assert same(after["blue"], before["blue"])
    assert same(after["red"], before["red"])
    assert not any(same(after["blinking"], row) for row in before.values())
    assert load_model(tmp_path / "run" / "last.safetensors").preprocessing.num_frames == 2  # as given


def test_a_head_is_new_where_no_class_stays_or_none_shall(
    uniformerv2: Run, colours: Path, checkpoint: Path, tmp_path: Path
) -> None:
    rows = [Annotation(row.path, row.label.upper()) for row in read_annotations(colours)]
    write_manifest(tmp_path / "upper.csv", rows)
    for number, (data, options) in enumerate([(tmp_path / "upper.csv", []), (colours, ["--map-head", "False"])]):
        run = tmp_path / f"run{number}"
        _, _, errors = uniformerv2("train", data, "--checkpoint", checkpoint, "--output", run, *STILL, *options)
        assert "head: new, for 3 classes" in errors
        before, after = head_rows(checkpoint), head_rows(run / "last.safetensors")
        assert not any(same(after[label], row) for label, row in zip(after, before.values(), strict=True))


def test_a_name_in_another_unicode_form_is_the_same_class(
    uniformerv2: Run, colours: Path, checkpoint: Path, tmp_path: Path
) -> None:
    for form in ("NFC", "NFD"):
        named = [Annotation(row.path, row.label.replace("red", "café")) for row in read_annotations(colours)]
        write_manifest(tmp_path / f"{form}.csv", named)
        text = (tmp_path / f"{form}.csv").read_text()
        (tmp_path / f"{form}.csv").write_text(unicodedata.normalize(form, text))
    run, again = tmp_path / "run", tmp_path / "again"
    uniformerv2("train", tmp_path / "NFC.csv", "--checkpoint", checkpoint, "--output", run, *STILL)
    _, _, errors = uniformerv2(
        "train", tmp_path / "NFD.csv", "--checkpoint", run / "last.safetensors", "--output", again, *STILL
    )
    assert "head: all 3 classes kept" in errors


def test_fine_tune_goes_on_alike(colours: Path, checkpoint: Path, tmp_path: Path) -> None:
    tuned = fine_tune(
        colours, checkpoint=checkpoint, output=tmp_path / "run", epochs=1, batch_size=4, lr=1e-6, workers=0
    )
    assert tuned.evaluation.correct == 3
    assert (tuned.model.preprocessing.num_frames, tuned.model.preprocessing.size) == (4, (32, 32))
    assert all(
        same(head_rows(tuned.run / "last.safetensors")[label], row) for label, row in head_rows(checkpoint).items()
    )


def test_a_recipe_for_arming_leaves_the_blocks_of_a_checkpoint(
    uniformerv2: Run, colours: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """own-small-clip leaves CLIP's last norm out, which this checkpoint has."""
    status, _, errors = uniformerv2(
        *("train", colours, "--recipe", "own-small-clip", "--checkpoint", checkpoint, "--output", tmp_path / "run"),
        *STILL,
    )
    assert status == 0, errors
    assert load_model(tmp_path / "run" / "last.safetensors").config.post_norm == load_model(checkpoint).config.post_norm


def test_cached_features_are_those_of_the_checkpoint(
    uniformerv2: Run, colours: Path, image_model: Path, tmp_path: Path
) -> None:
    cached = ["--frozen-backbone", "--fixed-views", 1, "--cache-features", "fp32"]
    armed = ["--arm", image_model, "--layout", "scene", "--size", 32, "--num-frames", 4]
    assert uniformerv2("train", colours, "--output", tmp_path / "run", *armed, *STILL, *cached)[0] == 0
    start = ["--checkpoint", tmp_path / "run" / "last.safetensors"]
    losses = []
    for name, options in (("cached", cached), ("plain", cached[:3])):
        status, _, errors = uniformerv2("train", colours, "--output", tmp_path / name, *start, *STILL, *options)
        assert status == 0, errors
        assert "head: all 3 classes kept" in errors
        losses.append(json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)

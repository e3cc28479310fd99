from __future__ import annotations

import csv
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import coloured, rising_timeline, write_video
from uniformerv2 import arm
from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.predict import Predictor
from uniformerv2.video.reader import VideoReader
from uniformerv2.video.transforms import test_crops as crops


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds, ten frames in each, of three colours."""
    frames = coloured([0] * 20 + [1] * 20 + [2] * 20)
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", frames)


@torch.inference_mode()
def test_scores_are_those_of_each_window_by_itself(lively: UniFormerV2, film: Path) -> None:
    timeline = Predictor(lively).timeline(film, window_seconds=2.0, stride_seconds=0.5)
    assert timeline.start.tolist() == [0.5 * number for number in range(9)]
    assert timeline.end.tolist() == [0.5 * number + 2 for number in range(9)]
    assert timeline.labels == ("blue", "green", "red")
    with VideoReader(film) as reader:
        for number, scores in enumerate(timeline.scores):
            # four parts of half a second; their middles, 5 frames apart
            indices = [5 * number + index for index in (2, 7, 12, 17)]
            clip = crops(reader.frames_at(indices), lively.preprocessing)
            np.testing.assert_allclose(scores, lively(clip)[0].softmax(-1).numpy(), atol=1e-5)


def test_each_frame_is_encoded_once(image_model: Path, film: Path) -> None:
    model = arm(image_model, num_classes=3, num_frames=4, size=(32, 32)).eval()
    predictor, frames, encode = Predictor(model), [], UniFormerV2.encode

    def counted(self: UniFormerV2, clip: Tensor) -> object:
        frames.append(clip.shape[2])
        return encode(self, clip)

    with patch.object(UniFormerV2, "encode", counted):
        predictor.timeline(film, window_seconds=2.0, stride_seconds=0.5)
    assert frames == [4] + [1] * 8


@pytest.mark.parametrize(("window", "stride", "windows"), [(2.5, None, 3), (9.0, 1.0, 1), (1.0, 5.0, 2)])
def test_windows_reach_to_the_end(
    lively: UniFormerV2, film: Path, window: float, stride: float | None, windows: int
) -> None:
    timeline = Predictor(lively).timeline(film, window_seconds=window, stride_seconds=stride)
    assert timeline.scores.shape == (windows, 3)
    assert timeline.end[-1] == pytest.approx(6.0)


def test_bad_input(image_model: Path, film: Path, tmp_path: Path) -> None:
    predictor = Predictor(arm(image_model, num_classes=3, size=(32, 32)))
    with pytest.raises(RecipeError, match="window"):
        predictor.timeline(film, window_seconds=0)
    with pytest.raises(VideoError, match="absent"):
        predictor.timeline(tmp_path / "absent.mp4")


def test_the_table(tmp_path: Path) -> None:
    rising_timeline().write_table(tmp_path / "a.csv", top_k=2)
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["start", "end", "label1", "score1", "label2", "score2"]
    assert len(rows) == 5
    assert rows[4] == {
        **{"start": "2.000", "end": "3.000", "label1": "class_1", "score1": "0.800000"},
        **{"label2": "class_0", "score2": "0.100000"},
    }
    rising_timeline().write_table(tmp_path / "a.csv", top_k=9)
    assert (tmp_path / "a.csv").read_text().splitlines()[0].endswith("label3,score3")

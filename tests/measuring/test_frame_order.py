"""Whether a model reads the order of frames. Here the class is whether a video grows brighter or darker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import Run, write_video
from models import small_model
from uniformerv2.data.annotations import Annotation
from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.measuring import frame_order
from uniformerv2.measuring.frame_order import paired_difference, rehearse_order
from uniformerv2.model.config import Preprocessing
from uniformerv2.model.uniformerv2 import UniFormerV2

CLASSES = ("brighter", "darker")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Annotation]:
    folder = tmp_path_factory.mktemp("videos")
    rows = []
    for number in range(16):
        greys = range(40, 240, 20) if number % 2 == 0 else range(220, 20, -20)
        path = write_video(folder / f"{number}.mp4", (np.full((32, 32, 3), grey, dtype=np.uint8) for grey in greys))
        rows.append(Annotation(path, CLASSES[number % 2]))
    return rows


@pytest.fixture
def model() -> UniFormerV2:
    model = small_model("temporal", Preprocessing(num_frames=6, size=(32, 32)), image_size=(32, 32), num_classes=2)
    model.labels = CLASSES
    return model


def reading(monkeypatch: pytest.MonkeyPatch, first: int, last: int) -> None:
    """The model compares two of the frames, and answers by that alone."""

    def answer(model: UniFormerV2, clips: torch.Tensor, **_: Any) -> torch.Tensor:
        grey = clips[:, 0].mean((1, 3, 4))  # (videos, frames)
        brighter = (grey[:, last] > grey[:, first]).float()
        return torch.stack((brighter, 1 - brighter), 1)

    monkeypatch.setattr(frame_order, "average_views", answer)


def test_a_model_that_reads_the_order_loses_by_another(
    model: UniFormerV2, videos: list[Annotation], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading(monkeypatch, 0, -1)
    found = rehearse_order(model, videos, workers=0)
    assert all(found.in_order)
    assert not any(found.backwards)
    assert 0 < sum(found.shuffled) < 16
    assert found.without_direction.low == found.without_direction.high == 1.0
    assert found.without_order.mean == pytest.approx(1 - sum(found.shuffled) / 16)
    assert found.lines()[0] == "in order  100.0% of 16 clips right"
    assert found.lines()[1].startswith(
        "backwards   0.0% of 16 clips right; +100.0 points in order, 95 % interval +100.0"
    )
    assert "no clips backwards or with shuffled frames; flips keep" in found.meaning
    assert rehearse_order(model, videos, workers=0, batch_size=3) == found


def test_where_no_interval_leaves_zero_that_is_said(
    model: UniFormerV2, videos: list[Annotation], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reading(monkeypatch, 0, 0)
    (tmp_path / "broken.mp4").write_text("no video")
    found = rehearse_order(model, [*videos, Annotation(tmp_path / "broken.mp4", "darker")], workers=0)
    assert found.in_order == found.backwards == found.shuffled
    assert sum(found.in_order) == 8
    *rows, left_out, meaning = found.lines()
    assert [row.endswith("which does not leave zero") for row in rows] == [False, True, True]
    assert left_out.startswith("1 more could not be read; the first: ")
    assert meaning.startswith("16 videos; it is not seen that this model reads the order of the frames")


def test_intervals_are_of_a_bootstrap_over_files() -> None:
    right, other = [True] * 10, [number >= 3 for number in range(10)]
    files = [str(number) for number in range(10)]
    found = paired_difference(right, other, files)
    # ten draws of a chance of 0.3: at most 0 with a probability of 2.8 %, at most 6 with 98.9 %, at most 5 with 95.3 %
    assert (found.mean, found.low, found.high) == pytest.approx((0.3, 0.0, 0.6))
    assert not found.lost
    clips = paired_difference(right * 7, other * 7, files * 7)  # clips of a file come together
    assert (clips.low, clips.high) == pytest.approx((found.low, found.high))
    assert paired_difference(right * 7, other * 7, [str(number) for number in range(70)]).lost
    assert not paired_difference(other, right, files).lost


def test_what_has_no_order_is_refused(model: UniFormerV2, videos: list[Annotation], tmp_path: Path) -> None:
    still = small_model("scene", Preprocessing(num_frames=1, size=(32, 32)), image_size=(32, 32), num_classes=2)
    still.labels = CLASSES
    with pytest.raises(RecipeError, match="clips of one frame, which have no order"):
        rehearse_order(still, videos, workers=0)
    (tmp_path / "broken.mp4").write_text("no video")
    with pytest.raises(VideoError, match="not one of 1 videos could be read"):
        rehearse_order(model, [Annotation(tmp_path / "broken.mp4", "darker")], workers=0)


def test_the_command_prints_three_accuracies(uniformerv2: Run, checkpoint: Path, colours: Path) -> None:
    status, output, errors = uniformerv2("rehearse", "order", checkpoint, colours, "--workers", 0)
    assert status == 0, errors
    assert [line.split()[0] for line in output.splitlines()] == ["in", "backwards", "shuffled", "15"]
    assert output.splitlines()[0] == "in order  100.0% of 15 clips right"

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from uniformerv2 import arm, save_model
from uniformerv2.predict import Predictor
from uniformerv2.video.live import live_frames

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def checkpoint(image_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(arm(image_model, num_classes=3, labels=("blue", "green", "red"), num_frames=4, size=(32, 32)), path)
    return path


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files play at once, and no frame has to go."""
    monkeypatch.setattr("uniformerv2.video.live.Pace.hold", lambda pace, time: None)
    monkeypatch.setattr(
        "uniformerv2.stream.live_frames",
        lambda source, **options: live_frames(source, **{**options, "queue_size": 100}),
    )


@pytest.mark.usefixtures("unhurried")
def test_lines_of_a_stream(uniformerv2: Run, checkpoint: Path, video: Path) -> None:
    status, output, errors = uniformerv2("stream", checkpoint, video, "--frames-per-second", 5, "--top-k", 2)
    assert status == 0
    lines = output.splitlines()
    assert [line.split()[0] for line in lines] == ["0.6", "0.8", "1.0"]
    assert all(line.count("%") == 2 and "ms)" in line for line in lines)
    assert errors.splitlines() == [
        "note: each frame is encoded once",
        f"{video}: ended after 6 frames, 0 dropped",
    ]


@pytest.mark.usefixtures("unhurried")
def test_a_stream_as_json(uniformerv2: Run, checkpoint: Path, video: Path) -> None:
    status, output, _ = uniformerv2(
        "stream", checkpoint, video, "--frames-per-second", 5, "--json", "--window-frames", 2, "--stride-frames", 2
    )
    assert status == 0
    lines = [json.loads(line) for line in output.splitlines()]
    assert [line["kind"] for line in lines] == ["prediction"] * 3 + ["end"]
    assert [line["frame"] for line in lines] == [1, 3, 5, 6]
    assert sorted(lines[0]["labels"]) == ["blue", "green", "red"]
    assert sum(lines[0]["scores"]) == pytest.approx(1)
    assert lines[0]["dropped"] == lines[0]["damaged"] == 0
    assert lines[0]["latency"] > 0


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["absent.mp4"], "absent.mp4"),
        (["VIDEO", "--window-frames", 20], "ended after 12 frames, 0 dropped, but a window has 20"),
        (["VIDEO", "--stride-frames", 0], "stride_frames"),
        (["VIDEO", "--top-k", 0], "top_k"),
        (["http://127.0.0.1:9/"], "cannot be opened"),
    ],
)
@pytest.mark.usefixtures("unhurried")
def test_what_a_stream_cannot_be(
    uniformerv2: Run, checkpoint: Path, video: Path, arguments: list[object], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("http_proxy", raising=False)
    given = [str(video) if one == "VIDEO" else one for one in arguments]
    status, output, errors = uniformerv2("stream", checkpoint, *given)
    assert (status, output) == (2, "")
    assert part in errors.splitlines()[-1]


def test_timelines(uniformerv2: Run, checkpoint: Path, colours: Path, tmp_path: Path) -> None:
    videos = [colours / "red" / "red0.mp4", colours / "blue" / "blue1.mp4"]
    folder = tmp_path / "new" / "folder"
    status, output, errors = uniformerv2(
        *("timeline", checkpoint, *videos, tmp_path / "absent.mp4"),
        *("-o", folder, "--window-seconds", 0.4, "--stride-seconds", 0.2, "--top-k", 2),
    )
    assert status == 2
    assert errors.startswith(f"note: each frame is encoded once\nerror: {tmp_path / 'absent.mp4'}")
    assert output.splitlines()[0] == (
        f"{videos[0]}: 5 windows, written to {folder / 'red0.csv'} and {folder / 'red0.svg'}"
    )
    assert sorted(path.name for path in folder.iterdir()) == ["blue1.csv", "blue1.svg", "red0.csv", "red0.svg"]
    with (folder / "red0.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    timeline = Predictor(checkpoint).timeline(videos[0], window_seconds=0.4, stride_seconds=0.2)
    for row, moment in zip(rows, timeline.moments(top_k=2), strict=True):
        assert (float(row["start"]), float(row["end"])) == pytest.approx((moment.start, moment.end))
        assert (row["label1"], row["label2"]) == moment.labels
        assert (float(row["score1"]), float(row["score2"])) == pytest.approx(moment.scores, abs=1e-6)


def test_a_timeline_as_json(uniformerv2: Run, checkpoint: Path, video: Path, tmp_path: Path) -> None:
    status, output, _ = uniformerv2("timeline", checkpoint, video, "-o", tmp_path, "--json", "--top-k", 1)
    assert status == 0
    [line] = [json.loads(line) for line in output.splitlines()]  # shorter than the window of two seconds
    assert (line["video"], line["start"], line["end"]) == (str(video), 0, pytest.approx(1.2))
    assert (len(line["labels"]), len(line["scores"])) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--window-seconds", 0], "window"),
        (["--stride-seconds", -1], "stride"),
        (["--top-k", 0], "top_k"),
    ],
)
def test_timelines_that_make_no_sense(
    uniformerv2: Run, checkpoint: Path, video: Path, tmp_path: Path, arguments: list[object], part: str
) -> None:
    status, output, errors = uniformerv2("timeline", checkpoint, video, "-o", tmp_path / "new", *arguments)
    assert (status, output) == (2, "")
    assert part in errors.splitlines()[-1]
    assert not (tmp_path / "new").exists()


def test_two_timelines_never_share_a_file(uniformerv2: Run, checkpoint: Path, video: Path, tmp_path: Path) -> None:
    status, output, errors = uniformerv2("timeline", checkpoint, video, video, "-o", tmp_path)
    assert (status, output) == (2, "")
    assert f"2 videos would be written to {tmp_path / 'red0.csv'}" in errors

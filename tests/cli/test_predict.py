"""`uniformerv2 predict`, `stream` and `timeline`."""

from __future__ import annotations

import csv
import json
import wave
from pathlib import Path

import pytest

from helpers import Run, assert_refused, files_below, noise, write_video
from uniformerv2.predict import Predictor
from uniformerv2.video.views import Views


def test_ranks_the_classes(uniformerv2: Run, checkpoint: Path, video: Path) -> None:
    status, output, errors = uniformerv2("predict", checkpoint, video, "--top-k", 2)
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0] == str(video)
    assert lines[1].endswith("%  red")
    assert len(lines) == 3


def test_json_is_one_object_a_line_and_nothing_else(
    uniformerv2: Run, checkpoint: Path, colours: Path, video: Path, tmp_path: Path
) -> None:
    blue = colours / "blue" / "blue1.mp4"
    status, output, errors = uniformerv2(
        "predict", checkpoint, video, tmp_path / "absent.mp4", blue, "--json", "--clips", 2, "--crops", 3
    )
    assert status == 2
    predictor = Predictor(checkpoint, views=Views(2, 3))
    for line, file in zip(output.splitlines(), (video, blue), strict=True):
        prediction = predictor.predict(file)
        assert json.loads(line) == {
            "video": str(file),
            "labels": list(prediction.labels),
            "scores": list(prediction.scores),
        }
    assert "absent.mp4" in errors
    assert "absent.mp4" not in output


def test_goes_on_past_bad_videos_and_says_so_at_the_end(
    uniformerv2: Run, checkpoint: Path, video: Path, tmp_path: Path
) -> None:
    absent, broken = tmp_path / "absent.mp4", tmp_path / "broken.mp4"
    broken.write_text("no video")
    status, output, errors = uniformerv2("predict", checkpoint, absent, video, broken, video)
    assert status == 2
    assert output.count(str(video)) == 2
    lines = errors.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    assert [str(absent) in lines[0], str(broken) in lines[1], "2 of 4 videos" in lines[2]] == [True] * 3


def test_puts_videos_together(uniformerv2: Run, checkpoint: Path, colours: Path) -> None:
    videos = sorted(colours.rglob("*0.mp4"))
    one_by_one = uniformerv2("predict", checkpoint, *videos)
    assert uniformerv2("predict", checkpoint, *videos, "--batch-size", 2) == one_by_one
    assert [line for line in one_by_one[1].splitlines() if line[0] != " "] == [str(file) for file in videos]


@pytest.mark.parametrize("kind", ["absent", "empty", "truncated", "text", "audio", "empty folder", "one pixel"])
def test_what_is_no_video(uniformerv2: Run, checkpoint: Path, video: Path, tmp_path: Path, kind: str) -> None:
    bad = tmp_path / "bad.avi"
    contents = {"empty": b"", "truncated": video.read_bytes()[:200], "text": b"this is a text\n" * 100}
    if kind in contents:
        bad.write_bytes(contents[kind])
    elif kind == "audio":
        with wave.open(str(bad), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(bytes(16000))
    elif kind == "empty folder":
        bad.mkdir()
    elif kind == "one pixel":
        write_video(bad, noise(4, 1, 1), codec="rawvideo", pixels="bgr24")
    before = files_below(tmp_path)
    assert_refused(uniformerv2("predict", checkpoint, bad), bad, "1x1" if kind == "one pixel" else "")
    assert files_below(tmp_path) == before


# --- streams and timelines


@pytest.mark.usefixtures("unhurried")
def test_lines_of_a_stream(uniformerv2: Run, checkpoint: Path, video: Path) -> None:
    status, output, errors = uniformerv2("stream", checkpoint, video, "--frames-per-second", 5, "--top-k", 2)
    assert status == 0
    lines = output.splitlines()
    assert [line.split()[0] for line in lines] == ["0.6", "0.8", "1.0"]
    assert all(line.count("%") == 2 and "ms)" in line for line in lines)
    note, end = errors.splitlines()
    assert note.startswith("note: every window is computed whole: ")
    assert end == f"{video}: ended after 6 frames, 0 dropped"


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


def test_timelines(uniformerv2: Run, checkpoint: Path, colours: Path, tmp_path: Path) -> None:
    videos = [colours / "red" / "red0.mp4", colours / "blue" / "blue1.mp4"]
    folder = tmp_path / "new" / "folder"
    status, output, errors = uniformerv2(
        *("timeline", checkpoint, *videos, tmp_path / "absent.mp4"),
        *("-o", folder, "--window-seconds", 0.4, "--stride-seconds", 0.2, "--top-k", 2),
    )
    assert status == 2
    assert f"\nerror: {tmp_path / 'absent.mp4'}" in errors
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

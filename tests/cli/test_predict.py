"""`uniformerv2 predict`."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import assert_error_line, files_below, noise, write_video
from uniformerv2.predict import Predictor
from uniformerv2.video.views import Views

Run = Callable[..., tuple[int, str, str]]


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
    status, output, errors = uniformerv2("predict", checkpoint, *videos, "--batch-size", 0)
    assert (status, output) == (2, "")
    assert_error_line(errors, "batch")


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
    status, output, errors = uniformerv2("predict", checkpoint, bad)
    assert (status, output) == (2, "")
    assert_error_line(errors, bad, "1x1" if kind == "one pixel" else "")
    assert files_below(tmp_path) == before


def test_needs_a_video_and_a_class_to_name(uniformerv2: Run, checkpoint: Path, video: Path) -> None:
    for arguments, part in (([], "no videos"), ([video, "--top-k", 0], "top_k")):
        status, output, errors = uniformerv2("predict", checkpoint, *arguments)
        assert (status, output) == (2, "")
        assert_error_line(errors, part)

"""What one video may cost: limits by default, in the environment and on the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers import Run, noise, write_video
from uniformerv2 import Limits, RecipeError, VideoError, VideoReader
from uniformerv2.video.limits import limits_set


def test_the_environment_stands_before_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIFORMERV2_MAX_CHUNK_BYTES", "1.5 MiB")
    monkeypatch.setenv("UNIFORMERV2_MAX_SECONDS", "2min")
    monkeypatch.setenv("UNIFORMERV2_MAX_FRAMES", "")
    with VideoReader(write_video(tmp_path / "a.mp4", noise(3))) as reader:
        assert reader.limits == Limits(chunk_bytes=3 << 19, seconds=120)
    with VideoReader(tmp_path / "a.mp4", limits=Limits(frames=7)) as reader:
        assert reader.limits == Limits(frames=7)


@pytest.mark.parametrize("text", ["0", "-1", "1e9", "many", "4h", "0.2", "inf", "nan", "5 elephants", "1,000"])
def test_a_limit_that_is_no_number_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIFORMERV2_MAX_PIXELS", text)
    with pytest.raises(RecipeError, match=rf"UNIFORMERV2_MAX_PIXELS={text}: expected a number above 0, such as .*2GB"):
        Limits.from_environment()


def test_an_error_says_how_to_raise_the_limit() -> None:
    error = Limits(pixels=100).exceeded("pixels", 256e6, "film.mov")
    assert isinstance(error, VideoError)
    assert str(error) == (
        "film.mov: pixels is 256000000, and the limit 100; if you trust the file, raise it with "
        "--limit pixels=VALUE or UNIFORMERV2_MAX_PIXELS=VALUE in the environment"
    )


def test_limits_of_a_command_end_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIFORMERV2_MAX_FRAMES", "8k")
    with limits_set(["frames=9", "memory_bytes=2GB"]):
        assert Limits.from_environment() == Limits(frames=9, memory_bytes=2 * 10**9)
    assert Limits.from_environment() == Limits(frames=8000)
    assert "UNIFORMERV2_MAX_MEMORY_BYTES" not in os.environ


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("pixel=4", "--limit pixel=4: expected NAME=VALUE, where NAME is one of pixels, chunk_bytes"),
        ("pixels", "--limit pixels=: expected a number above 0"),
        ("seconds=4x", "--limit seconds=4x: expected a number above 0, such as 90, 30s"),
    ],
)
def test_a_wrong_option_is_one_line(limit: str, message: str, tmp_path: Path, uniformerv2: Run) -> None:
    status, _, err = uniformerv2("predict", tmp_path / "model", tmp_path / "a.mp4", "--limit", limit)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err

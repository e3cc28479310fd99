"""Fixtures for tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from uniformerv2.video.live import live_frames


@pytest.fixture(scope="session")
def tiny(image_model: Path) -> list[object]:
    """Options of a training of a few seconds."""
    return ["--arm", image_model, "--size", 32, "--num-frames", 4, "--batch-size", 4, "--workers", 0, "--lr", 2e-3]


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files play at once, and no frame has to go."""
    monkeypatch.setattr("uniformerv2.video.live.Pace.hold", lambda pace, time: None)
    monkeypatch.setattr(
        "uniformerv2.stream.live_frames",
        lambda source, **options: live_frames(source, **{**options, "queue_size": 100}),
    )

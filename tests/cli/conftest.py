"""Fixtures for tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny(image_model: Path) -> list[object]:
    """Options of a training of a few seconds."""
    return ["--arm", image_model, "--size", 32, "--num-frames", 4, "--batch-size", 4, "--workers", 0, "--lr", 2e-3]

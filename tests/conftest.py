"""Fixtures for the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference outputs and real media that lies beside a checkout; tests that need it skip without it."""
    folder = Path(os.environ.get("UNIFORMERV2_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"reference data not found at {folder} (set UNIFORMERV2_SHARED)")
    return folder

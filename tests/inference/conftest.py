"""Fixtures of tests of inference."""

from __future__ import annotations

import pytest


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Precision bf16 on any processor: one without the instructions computes the same, slowly."""
    monkeypatch.setattr("uniformerv2.inference.precision.has_bf16", lambda device: True)

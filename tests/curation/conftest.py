from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from curation.checking import draw, scene


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the different sound videos 0.mp4 to 5.mp4, of 12 frames and 1.2 s each. To be copied from only."""
    folder = tmp_path_factory.mktemp("drawn")
    for seed in range(6):
        draw(folder / f"{seed}.mp4", scene(seed))
    return folder


@pytest.fixture
def videos(drawn: Path, tmp_path: Path) -> Path:
    """A copy of those videos, and copy.mp4, which is 0.mp4 again."""
    shutil.copytree(drawn, tmp_path / "videos")
    shutil.copy(drawn / "0.mp4", tmp_path / "videos" / "copy.mp4")
    return tmp_path / "videos"

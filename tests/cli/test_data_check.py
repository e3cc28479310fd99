"""`uniformerv2 data check`: what it prints and writes; what it finds is tests/curation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from helpers import Run


@pytest.fixture
def check(uniformerv2: Run) -> Run:
    return lambda *arguments: uniformerv2("data", "check", *arguments, "--workers", 0)


@pytest.fixture
def manifest(colours: Path, tmp_path: Path) -> Path:
    """Two sound videos, a leak and a text file, in videos.csv beside them."""
    for name in ("red0", "green0"):
        shutil.copy(colours / name[:-1] / f"{name}.mp4", tmp_path)
    shutil.copy(tmp_path / "red0.mp4", tmp_path / "again.mp4")
    (tmp_path / "[text].mp4").write_text("no video")
    rows = ("red0.mp4,red,val", "green0.mp4,green,train", "again.mp4,red,train", "[text].mp4,green,val")
    (tmp_path / "videos.csv").write_text("\n".join(("path,label,split", *rows)) + "\n")
    return tmp_path / "videos.csv"


def test_a_check_says_what_is_wrong_and_where_it_is_written(manifest: Path, check: Run) -> None:
    status, output, errors = check(manifest)
    assert (status, errors) == (0, "")
    assert "2 of 4 rows pass, 2 left out" in output
    assert "LEAK: 1 row(s) of train" in output
    assert "[text].mp4" in output.replace("\n", "")  # no markup
    assert "mpeg4 (3)" in output
    clean = manifest.with_name("videos.clean.csv")
    assert str(clean) in output
    assert clean.read_text() == "path,label,split\nred0.mp4,red,val\ngreen0.mp4,green,train\n"
    assert len(manifest.with_name("videos.findings.csv").read_text().splitlines()) == 4
    assert "--root" not in output


def test_everything_as_json(manifest: Path, check: Run) -> None:
    status, output, _ = check(manifest, "--json", "--keep", "unreadable", "leak", "duplicate")
    assert status == 0
    report = json.loads(output)
    assert report["counts"] == {"unreadable": 1, "duplicate": 1, "leak": 1}
    assert (report["rows"], report["passed"], report["left_out"]) == (4, 4, 0)
    assert report["labels"] == {"train": {"green": 1, "red": 1}, "val": {"green": 1, "red": 1}}
    leak = next(finding for finding in report["findings"] if finding["finding"] == "leak")
    assert leak["path"] == "again.mp4"
    assert leak["other"] == {"line": 2, "path": "red0.mp4", "split": "val"}


def test_paths_that_are_relative_to_another_folder_are_pointed_out(manifest: Path, check: Run, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    shutil.move(manifest, tmp_path / "lists")
    status, _, errors = check(tmp_path / "lists" / "videos.csv", "--root", tmp_path)
    assert status == 0
    assert f"--root {tmp_path}" in errors
    assert (tmp_path / "lists" / "videos.clean.csv").read_text().count("\n") == 3


def test_a_clip_of_more_frames_and_a_minimum_of_seconds(manifest: Path, check: Run) -> None:
    assert "0 of 4 rows pass" in check(manifest, "--num-frames", 13)[1]  # they have 12
    assert "2 of 4 rows pass" in check(manifest, "--num-frames", 12)[1]
    assert "0 of 4 rows pass" in check(manifest, "--minimum-seconds", 1.3)[1]


def test_the_folder_one_stands_in_has_a_name(
    colours: Path, check: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(colours, tmp_path / "colours")
    monkeypatch.chdir(tmp_path / "colours")
    assert "15 of 15 rows pass" in check(".")[1]
    assert (tmp_path / "colours.clean.csv").read_text().splitlines()[1] == "blue/blue0.mp4,blue"

"""`uniformerv2 data import` and `uniformerv2 data kinetics710`."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from helpers import Run, assert_refused

HEADER = "label,youtube_id,time_start,time_end,split\n"


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "aaaaaaaaaaa_000001_000011.mp4").touch()
    (tmp_path / "val.csv").write_text(HEADER + "hugging,aaaaaaaaaaa,1,11,val\nabseiling,bbbbbbbbbbb,1,11,val\n")
    return tmp_path / "videos"


def test_import_prints_what_became_of_the_rows(videos: Path, uniformerv2: Run) -> None:
    folder = videos.parent
    command = ["data", "import", "k400", "--annotations", folder / "val.csv", "--videos", videos]
    command += ["-o", folder / "k400.csv"]
    status, printed, notes = uniformerv2(*command, "--left-out", folder / "left_out.csv")
    assert status == 0
    assert "2 rows" in printed
    assert "no such file" in printed
    assert "1 labels are written as the official list has them, such as 'hugging' as 'hugging baby'" in notes
    assert (folder / "k400.csv").read_text().splitlines() == [
        "path,label,start,end,split",
        "videos/aaaaaaaaaaa_000001_000011.mp4,hugging baby,,,val",
    ]
    assert len((folder / "left_out.csv").read_text().splitlines()) == 2
    assert uniformerv2(*command, "--order", "mmaction2", "--split", "val")[0] == 0
    assert "hugging,,,val" in (folder / "k400.csv").read_text()


def test_import_says_in_one_line_what_is_wrong(videos: Path, uniformerv2: Run) -> None:
    folder = videos.parent
    command = ["data", "import", "k400", "--annotations", folder / "val.csv", "--videos", videos]
    command += ["-o", folder / "k400.csv", "--strict"]
    assert_refused(uniformerv2(*command), "val.csv, line 3: no such file: bbbbbbbbbbb_000001_000011")
    assert_refused(uniformerv2(*command, "--lenient"), "contradict each other")
    assert not (folder / "k400.csv").exists()


def test_kinetics710_prints_every_count(tmp_path: Path, uniformerv2: Run) -> None:
    command = ["data", "kinetics710", "-o", f"{tmp_path}/k710", "--order", "mmaction2"]
    for edition, video in (("400", "a"), ("600", "a"), ("700", "b")):
        (tmp_path / f"train{edition}.csv").write_text(HEADER + f"zumba,{video * 11},1,11,train\n")
        (tmp_path / f"val{edition}.csv").write_text(HEADER + "zumba,bbbbbbbbbbb,1,11,val\n")
        command += [f"--kinetics{edition}", f"{tmp_path}/train{edition}.csv", f"{tmp_path}/val{edition}.csv"]
    status, printed, notes = uniformerv2(*command)
    assert status == 0
    assert "Kinetics-710, 1 videos" in printed
    assert "repeats a video of kinetics600" in printed
    assert "709 classes have no video" in notes
    with (tmp_path / "k710" / "kinetics710.csv").open(newline="") as file:
        assert [row["youtube_id"] for row in csv.DictReader(file)] == ["a" * 11]
    maps = [f"map_kinetics{edition}.json" for edition in (400, 600, 700)]
    files = sorted(path.name for path in (tmp_path / "k710").iterdir())
    assert files == ["kinetics710.csv", "labels.txt", *maps, "report.json"]
    assert_refused(uniformerv2(*command), "k710: is there already")

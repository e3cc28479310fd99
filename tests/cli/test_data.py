"""`uniformerv2 data import`, `data export` and `data kinetics710`."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from helpers import Run, assert_refused, noise, write_video

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


def test_spans_come_in_and_go_out(tmp_path: Path, uniformerv2: Run) -> None:
    write_video(tmp_path / "videos" / "a.mp4", noise(20))
    (tmp_path / "a.srt").write_text(
        "1\n00:00:00,500 --> 00:00:01,000\nwave\n\n2\n00:00:00,700 --> 00:00:01,500\nsit\n\n"
        "3\n00:00:09,000 --> 00:00:10,000\nlate\n"
    )
    command = ["data", "import", "spans", "--annotations", tmp_path / "a.srt", "--videos", tmp_path / "videos"]
    command += ["-o", tmp_path / "spans.csv"]
    status, printed, _ = uniformerv2(*command)
    assert status == 0
    assert "past the end of the video" in printed
    assert (tmp_path / "spans.csv").read_text().splitlines()[1:] == [
        "videos/a.mp4,wave,0.5,1.0,",
        "videos/a.mp4,sit,0.7,1.5,",
    ]
    with (tmp_path / "spans.csv").open("a") as manifest:
        manifest.write("videos/a.mp4,all,,,\n")
    status, printed, _ = uniformerv2("data", "export", tmp_path / "spans.csv", "-o", tmp_path / "a.vtt")
    assert (status, printed) == (0, f"3 spans written to 1 file(s): {tmp_path}/a.vtt\n")
    assert (tmp_path / "a.vtt").read_text().split("\n\n")[1:] == [
        "00:00:00.500 --> 00:00:01.000\nwave",
        "00:00:00.700 --> 00:00:01.500\nsit",
        "00:00:00.000 --> 00:00:02.000\nall\n",
    ]
    assert uniformerv2("data", "export", tmp_path / "spans.csv", "-o", tmp_path / "a.xml")[0] == 0
    assert uniformerv2(*command[:4], tmp_path / "a.xml", *command[5:])[0] == 0
    assert (tmp_path / "spans.csv").read_text().splitlines()[1:] == [
        "videos/a.mp4,wave,0.5,1.0,",
        "videos/a.mp4,sit,0.7,1.5,",
        "videos/a.mp4,all,0.0,2.0,",
    ]


def test_options_of_spans_are_for_spans(videos: Path, uniformerv2: Run) -> None:
    command = ["data", "import", "k400", "--annotations", videos.parent / "val.csv", "--videos", videos, "-o", "x.csv"]
    for option in (("--format", "srt"), ("--tier", "x"), ("--frame-rate", "25")):
        assert_refused(uniformerv2(*command, *option), "are for `data import spans`, not for k400")
    command[2] = "spans"
    assert_refused(uniformerv2(*command, "--frame-rate", "0"), "more than 0 frames/s")
    assert_refused(uniformerv2("data", "export", videos.parent / "val.csv", "-o", videos / "x.pdf"), "path missing")

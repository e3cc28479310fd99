"""What is found to be wrong with the rows of a manifest."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import pytest

from curation.checking import check, check_rows, clean_paths, draw, draw_half, kinds, scene, table
from uniformerv2.curation import probe as probing
from uniformerv2.curation.findings import FINDING_KINDS, KEPT
from uniformerv2.curation.probe import probe_video
from uniformerv2.video.views import segment_indices

# --- a row by itself


def test_sound_rows_pass_unchanged(videos: Path) -> None:
    text = 'label,note,path\n"a, ""b""",x,0.mp4\n\n c ,"two\nlines", 1.mp4\nd\u00fc,,2.mp4\n'
    (videos / "all.csv").write_text("\ufeff" + text, encoding="utf-8")
    result = check(videos / "all.csv")
    assert result.findings == []
    assert (videos / "clean.csv").read_text(encoding="utf-8") == (
        'label,note,path\n"a, ""b""",x,0.mp4\n"c ","two\nlines","1.mp4"\nd\u00fc,,2.mp4\n'
    )
    assert (videos / "table.csv").read_text() == "line,path,label,start,end,split,finding,left_out,detail\n"
    assert [row.line for row in result.rows] == [2, 5, 6]


def test_each_kind_of_damage_has_its_name(videos: Path) -> None:
    (videos / "empty.mp4").touch()
    (videos / "text.mp4").write_text("no video")
    draw(videos / "short.mp4", scene(9, 7))
    names = ("0.mp4", "gone.mp4", "empty.mp4", "text.mp4", "short.mp4", "1.mp4")
    result = check_rows(videos, "path,label", *zip(names, "aaabbb", strict=True))
    assert kinds(result) == {3: ["missing"], 4: ["unreadable"], 5: ["unreadable"], 6: ["too-short"]}
    assert (videos / "clean.csv").read_text() == "path,label\n0.mp4,a\n1.mp4,b\n"
    lines = table(videos)
    assert [(line["path"], line["left_out"]) for line in lines] == [(name, "yes") for name in names[1:5]]
    assert [line["detail"] for line in lines[:2]] == ["No such file or directory", "the file is empty"]
    assert "7 frame(s)" in lines[3]["detail"]
    assert result.labels() == {"": {"a": 1, "b": 1}}
    assert kinds(check(videos / "all.csv", num_frames=7)) == {3: ["missing"], 4: ["unreadable"], 5: ["unreadable"]}


@pytest.mark.parametrize(("suffix", "codec"), [("avi", "mjpeg"), ("mov", "mjpeg"), ("mkv", "mpeg4"), ("flv", "flv1")])
def test_a_video_that_breaks_off_is_found_by_its_stated_duration(suffix: str, codec: str, tmp_path: Path) -> None:
    half = draw_half(tmp_path, suffix, codec)
    result = check_rows(tmp_path, "path,label", (f"whole.{suffix}", "a"), (half, "a"))
    found = kinds(result)
    assert 2 not in found
    assert "wrong-duration" in found[3]
    assert result.left_out == {1}
    assert result.probes[half].stated_seconds == 6.0
    assert result.probes[half].seconds < 4


@pytest.mark.parametrize(("suffix", "codec"), [("mpg", "mpeg1video"), ("ts", "mpeg2video"), ("gif", "gif")])
def test_a_duration_that_nothing_states_is_not_wrong(suffix: str, codec: str, tmp_path: Path) -> None:
    draw(tmp_path / f"a.{suffix}", scene(8, 60), codec=codec, rate=25)
    assert kinds(check_rows(tmp_path, "path,label", (f"a.{suffix}", "a"))) == {}


def test_damage_is_reported_and_kept(videos: Path, shared: Path) -> None:
    shutil.copy(shared / "data" / "videos" / "decord" / "corrupted.mp4", videos)
    assert kinds(check_rows(videos, "path,label", ("corrupted.mp4", "a"))) == {2: ["damaged"]}
    assert clean_paths(videos) == ["corrupted.mp4"]
    assert table(videos)[0]["left_out"] == "no"
    check(videos / "all.csv", keep=())
    assert clean_paths(videos) == []


def test_the_rows_of_a_file_are_judged_by_their_intervals(videos: Path) -> None:
    intervals = [("", 0.8), (0.4, ""), (0.2, 0.5), (0, 1.6), (0, 1.8), (1.2, ""), (7, 8)]
    result = check_rows(videos, "path,label,start,end", *(("0.mp4", "a", *interval) for interval in intervals))
    assert kinds(result) == {4: ["too-short"], 6: ["beyond-end"], 7: ["beyond-end"], 8: ["beyond-end"]}
    assert "1.20 s" in result.findings[-1].detail
    assert [interval.frames for interval in result.probes["0.mp4"].intervals] == [9, 8, 4, 12, 12, 0, 0]
    longer = kinds(check(videos / "all.csv", minimum_seconds=0.85))
    assert longer[3] == ["too-short"]  # 8 frames of 0.1 s
    assert 2 not in longer


def test_a_file_is_decoded_once_and_where_evaluation_looks(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[list[int]] = []

    class Spy(probing.VideoReader):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            assert options == {"threads": 1}
            decoded.append([])
            super().__init__(*arguments, **options)

        def frames_at(self, indices: Sequence[int]) -> Any:
            decoded[-1] += indices
            return super().frames_at(indices)

    monkeypatch.setattr(probing, "VideoReader", Spy)
    found = probe_video(drawn / "0.mp4", [(None, None), (0.3, 1.0)], 4)
    whole, part = segment_indices(12, 4), [3 + index for index in segment_indices(8, 4)]
    assert decoded == [sorted({whole[0], whole[2], whole[3], part[0], part[2], part[3]})]
    assert len(found.thumbnails) == 3 * 16 * 16


def test_only_the_rows_whose_frames_are_lost_are_unreadable(videos: Path) -> None:
    path = draw(videos / "long.avi", scene(3, 48), codec="mjpeg")
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for position, size in packets[30:]:
        content[position + 8 : position + 8 + size] = bytes(size)
    path.write_bytes(content)
    rows = [("long.avi", "a", *interval) for interval in ((0, 1), (1, 2), (3.5, 4.5))]
    found = kinds(check_rows(videos, "path,label,start,end", *rows))
    assert "unreadable" in found[4]
    assert "unreadable" not in found[2] + found[3]
    assert "wrong-duration" in found[2]  # 30 of 48 frames, whichever row is asked for


def test_a_folder_of_frames_is_a_video(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for index, image in enumerate(scene(1, 9)):
            draw(tmp_path / name / f"{index}.jpg", [image], codec="mjpeg")
    result = check_rows(tmp_path, "path,label", ("a", "x"), ("b", "x"))
    assert kinds(result) == {3: ["duplicate"]}
    assert result.statistics()["codecs"] == {"images": 2}
    (tmp_path / "b" / "0.jpg").unlink()
    assert "duplicate" not in kinds(check(tmp_path / "all.csv"))  # the folder has changed, so it is read again


def test_statistics_are_those_of_the_files(videos: Path) -> None:
    draw(videos / "other.avi", scene(20, 50), codec="mjpeg", side=64, rate=25)
    rows = [("0.mp4", "a", "train"), ("1.mp4", "a", "train"), ("other.avi", "b", "val"), ("gone.mp4", "b", "val")]
    result = check_rows(videos, "path,label,split", *rows)
    assert result.statistics() == {
        "readable": 3,
        "codecs": {"mpeg4": 2, "mjpeg": 1},
        "sizes": {"96x96": 2, "64x64": 1},
        "rates": {"10": 2, "25": 1},
        "seconds": {"shortest": 1.2, "median": 1.2, "longest": 2.0, "total": 4.4},
    }
    assert result.labels() == {"train": {"a": 2}, "val": {"b": 1}}


def test_every_media_file_is_judged(shared: Path, tmp_path: Path) -> None:
    """What is no video, which files are equal byte for byte, and which were seen to be copies by eye."""
    root = shared / "data" / "videos"
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix not in {".txt", ".tsv", ".jpg"})
    assert len(files) >= 60
    names = [str(path.relative_to(root)) for path in files]
    result = check_rows(tmp_path, "path,label", *((name, "x") for name in names), root=root, num_frames=3)
    found: dict[str, set[str]] = {}
    pairs = set()
    for finding in result.findings:
        found.setdefault(finding.kind, set()).add(result.rows[finding.row].name)
        if finding.kind == "near-duplicate":
            pairs.add((result.rows[finding.other].name, result.rows[finding.row].name))
    sound = {name for name in names if name.endswith((".wav", ".mp3"))}
    assert found["unreadable"] == sound | {"moviepy/-video-with-dash-.mp4", "moviepy/bitmap.mp4"}
    assert found["too-short"] == {"imageio/imageio_issue245.gif"}
    contents: dict[bytes, str] = {}
    copies = {
        name
        for name, path in zip(names, files, strict=True)
        if contents.setdefault(path.read_bytes(), name) != name and name not in found["unreadable"]
    }
    assert found["duplicate"] == copies
    assert len(copies) == 3
    assert pairs == {
        ("gulpio/test.mp4", "gulpio/test.webm"),
        ("ml-cvnets/dummy_silent_video.mov", "ml-cvnets/dummy_video.mov"),
        ("PaddleVideo/example.avi", "tmbo-ucf101/video1.webm"),
        ("tmbo-ucf101/video2.avi", "tmbo-ucf101/video2.webm"),
        ("tmbo-ucf101/video3.avi", "tmbo-ucf101/video3.webm"),
        ("torchcodec/h264_10bits.mp4", "torchcodec/h265_10bits.mp4"),
    }


# --- a row beside others


def test_copies_are_duplicates_of_held_out_rows(videos: Path) -> None:
    shutil.copy(videos / "0.mp4", videos / "third.mp4")
    rows = [("0.mp4", "a", "train"), ("1.mp4", "a", "train"), ("copy.mp4", "a", "val"), ("third.mp4", "a", "val")]
    result = check_rows(videos, "path,label,split", *rows)
    assert kinds(result) == {2: ["duplicate", "leak"], 5: ["duplicate"]}
    assert {result.findings[place].other for place in range(3)} == {2}
    assert result.findings[0].detail == "copy.mp4, line 4 (val)"
    assert clean_paths(videos) == ["1.mp4", "copy.mp4"]


def test_copies_in_another_codec_and_size_are_near_duplicates(videos: Path) -> None:
    draw(videos / "small.avi", scene(0), codec="mjpeg", side=64)
    draw(videos / "large.mp4", scene(1), side=160)
    rows = [("0.mp4", "a", "train"), ("1.mp4", "b", "test"), ("2.mp4", "b", "train")]
    result = check_rows(videos, "path,label,split", *rows, ("small.avi", "a", "train"), ("large.mp4", "b", "train"))
    assert kinds(result) == {5: ["near-duplicate"], 6: ["near-duplicate", "near-leak"]}
    assert [finding.other for finding in result.findings] == [0, 1, 1]
    assert result.left_out == set()
    assert check(videos / "all.csv", keep=("near-duplicate",)).left_out == {4}


BOTH_SIDES = [("0.mp4", "a", 0, 0.8, "val"), ("0.mp4", "a", 0.3, 1.2, "train"), ("1.mp4", "a", 0, 1.2, "train")]


@pytest.mark.parametrize(
    ("columns", "rows", "expected"),
    [
        # one file on both sides
        ("path,label,start,end,split", BOTH_SIDES, {3: ["leak"]}),
        # val and test are one side
        ("path,label,split", [("0.mp4", "a", "val"), ("copy.mp4", "a", "test")], {2: ["duplicate"]}),
        # a row that is left out has no duplicates
        ("path,label,start,end", [("0.mp4", "a", 0, 9), ("copy.mp4", "a", "", "")], {2: ["beyond-end"]}),
    ],
)
def test_leaks_and_duplicates(
    columns: str, rows: list[tuple[object, ...]], expected: dict[int, list[str]], videos: Path
) -> None:
    assert kinds(check_rows(videos, columns, *rows)) == expected


def test_other_times_and_other_labels_are_no_duplicates(videos: Path) -> None:
    rows = [
        ("0.mp4", "a", 0, 0.8),
        ("0.mp4", "a", 0.2, 1),  # of one file: meant so
        ("copy.mp4", "a", 0.7, ""),  # of a copy: mostly the same frames
        ("0.mp4", "a", 0, 0.8),
        ("1.mp4", "a", 0, 0.8),
        ("1.mp4", "b", 0.1, 1),
        ("2.mp4", "a", "", 0.8),
        ("2.mp4", "b", 0.8, ""),  # one after the other
    ]
    result = check_rows(videos, "path,label,start,end", *rows, num_frames=3)
    assert kinds(result) == {4: ["duplicate"], 5: ["duplicate"], 6: ["two-labels"], 7: ["two-labels"]}
    assert result.findings[2].detail == "'b' in 1.mp4, line 7"
    assert result.left_out == {2, 3}


def test_actions_before_few_backgrounds_are_told_apart_and_their_copies_found(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weizmann"
    folder.symlink_to(shared / "data" / "weizmann", target_is_directory=True)
    assert check(folder).findings == []
    rows = [(str(path.relative_to(folder)), path.parent.name) for path in sorted(folder.rglob("*.avi"))]
    copies = []
    for name, label in rows[::9]:
        with av.open(str(folder / name)) as container:
            images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        copies.append((draw(tmp_path / "copies" / name, images, side=120, rate=25), label))
    result = check_rows(tmp_path, "path,label", *rows, *copies, root=folder)
    assert [finding.kind for finding in result.findings] == ["near-duplicate"] * 10
    assert [(finding.other, finding.row) for finding in result.findings] == [(9 * i, 90 + i) for i in range(10)]


def test_an_unforeseen_error_is_a_finding(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(probing, "_container", fail)
    assert check_rows(videos, "path,label", ("0.mp4", "a")).findings[0].detail == "ZeroDivisionError: a bug"


def test_what_is_kept_by_default_is_among_the_findings() -> None:
    assert set(KEPT) < set(FINDING_KINDS)

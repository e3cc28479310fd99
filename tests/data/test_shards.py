"""Videos in tar files. The tars of others are made here with tarfile alone, member by member."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch

from uniformerv2.cli import main
from uniformerv2.data import shards as module
from uniformerv2.data.annotations import Annotation
from uniformerv2.data.dataset import VideoDataset, make_loader
from uniformerv2.data.shards import is_shards, read_shards, video_source, write_shards
from uniformerv2.data.sources import read_annotations
from uniformerv2.errors import AnnotationError
from uniformerv2.model.config import Preprocessing

pytest.importorskip("webdataset")

CLIP = Preprocessing(num_frames=2, size=(32, 32))
LABEL = b'{"label": "wave"}'


def pack(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as tar:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member[0])
            content = b"" if isinstance(member, tarfile.TarInfo) else member[1]
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def videos(colours: Path) -> list[Annotation]:
    return read_annotations(colours)


def test_written_shards_hold_the_files_and_their_rows(videos: list[Annotation], tmp_path: Path) -> None:
    rows = [
        Annotation(videos[0].path, "blue", 0.1, 0.5, "train"),
        Annotation(videos[1].path, "blue", split="val"),
        Annotation(videos[0].path, "green", 0.5, None, "train"),
        *videos[2:],
    ]
    shards = write_shards(rows, tmp_path / "shards", per_shard=4)
    assert [shard.name for shard in shards] == [f"shard-{number:06d}.tar" for number in range(4)]
    assert (tmp_path / "shards" / "classes.txt").read_text() == "blue\ngreen\nred\n"
    found = read_shards(tmp_path / "shards")
    assert [(row.label, row.start, row.end, row.split) for row in found] == [
        (row.label, row.start, row.end, row.split) for row in [rows[0], rows[2], rows[1], *rows[3:]]
    ]
    assert found[0].path == found[1].path == shards[0] / "blue" / "blue0.mp4"
    for row, video in zip(found[1:], videos, strict=True):
        assert video_source(row.path) == video.path.read_bytes()


def test_the_library_reads_what_was_written(videos: list[Annotation], tmp_path: Path) -> None:
    import webdataset

    shards = write_shards(videos, tmp_path / "shards", per_shard=10)
    samples = list(webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False))
    assert [sample["mp4"] for sample in samples] == [video.path.read_bytes() for video in videos]
    assert [json.loads(sample["json"])["label"] for sample in samples] == [video.label for video in videos]
    assert [int(sample["cls"]) for sample in samples] == [0] * 5 + [1] * 5 + [2] * 5


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_load_as_files_do(videos: list[Annotation], tmp_path: Path, workers: int) -> None:
    write_shards(videos, tmp_path / "shards", per_shard=6)
    classes = ["blue", "green", "red"]
    pairs = zip(
        *(
            make_loader(VideoDataset(rows, classes, CLIP), batch_size=4, workers=workers)
            for rows in (videos, read_annotations(tmp_path / "shards"))
        ),
        strict=True,
    )
    for file, member in pairs:
        assert torch.equal(file.clips, member.clips)
        assert torch.equal(file.labels, member.labels)
        assert all(".tar/" in path for path in member.paths)


def test_shards_of_others(videos: list[Annotation], tmp_path: Path) -> None:
    content = videos[0].path.read_bytes()
    text = {"json": b'{"fps": 25, "start": 1, "end": 2.5}', "cls": b"1\n"}
    pack(
        tmp_path / "a-000.tar",
        ("./x/1.v2.jpg", b"a cover"),
        ("x/1.cls", b"wave"),
        ("x/1.MP4", content),
        ("._x.mp4", b"what some systems add"),
        ("x/2.json", text["json"]),
        ("x/2.cls", text["cls"]),
        ("x/2.webm", content),
    )
    pack(tmp_path / "a-001.tar", ("1.mp4", content), ("1.json", LABEL), ("__meta__", b""))
    (tmp_path / "classes.txt").write_text("run\njump\n")
    rows = read_shards(tmp_path / "a-{000..001}.tar")
    assert [(str(row.path.relative_to(tmp_path)), row.label, row.start, row.end) for row in rows] == [
        ("a-000.tar/x/1.MP4", "wave", None, None),
        ("a-000.tar/x/2.webm", "jump", 1.0, 2.5),
        ("a-001.tar/1.mp4", "wave", None, None),
    ]
    assert video_source(rows[1].path) == content
    assert [is_shards(tmp_path / name) for name in ("a-000.tar", "a-{0..1}.tar", "", "classes.txt")] == [
        True, True, True, False,
    ]  # fmt: skip


def test_a_manifest_may_name_members(videos: list[Annotation], tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", ("1.mp4", videos[0].path.read_bytes()), ("1.json", LABEL))
    (tmp_path / "list.csv").write_text("path,label\na.tar/1.mp4,other\n")
    (row,) = read_annotations(tmp_path / "list.csv")
    assert VideoDataset([row], ["other"], CLIP)[0].clips is not None
    (tmp_path / "list.csv").write_text("path,label\na.tar/2.mp4,other\n")
    with pytest.raises(AnnotationError, match=r"1 of its videos do not exist: .*a\.tar/2\.mp4"):
        read_annotations(tmp_path / "list.csv")


def link(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("../a.mp4", b"x"), ("../a.json", LABEL)], r"member \.\./a\.mp4: the name leads out of the shard"),
        ([("a/../../b.mp4", b"x")], r"member a/\.\./\.\./b\.mp4: the name leads out"),
        ([("/etc/a.mp4", b"x")], "member /etc/a.mp4: the name leads out"),
        ([link("a.mp4")], "member a.mp4: a link or a device"),
        ([("a.mp4", b"x")], r"member a\.mp4: a video without a label \(a\.json or a\.cls\)"),
        ([("a.json", LABEL)], r"member a\.json: a label without a video"),
        ([("a.mp4", b"x"), ("a.json", LABEL), ("a.mp4", b"y")], r"member a\.mp4: a second video for a\.mp4"),
        ([("a.mp4", b"x"), ("a.json", LABEL), ("a.json", LABEL)], r"member a\.json: is there twice"),
        ([("a.mp4", b"x"), ("a.json", b"{")], r"member a\.json: not JSON"),
        ([("a.mp4", b"x"), ("a.json", b'{"label": 3}')], r"member a\.json: expected .*found .*3"),
        ([("a.mp4", b"x"), ("a.json", b'{"label": "b", "split": "dev"}')], r"member a\.json: split is 'dev'"),
        ([("a.mp4", b"x"), ("a.json", b'{"label": "b", "start": 2, "end": 1}')], r"a\.json: the interval .* is empty"),
        ([("a.mp4", b"x"), ("a.cls", b"\xff")], r"member a\.cls: expected a class"),
        ([("a.mp4", b"x"), ("a.cls", b"7")], r"member a\.cls: class 7 is not among the 2 lines of classes\.txt"),
        ([("readme.txt", b"x")], "no video in these shards"),
    ],
)  # fmt: skip
def test_what_a_shard_must_not_hold(
    tmp_path: Path, members: list[tuple[str, bytes] | tarfile.TarInfo], message: str
) -> None:
    (tmp_path / "classes.txt").write_text("a\nb\n")
    shard = pack(tmp_path / "bad.tar", *members)
    with pytest.raises(AnnotationError, match=message) as caught:
        read_shards(shard)
    assert str(shard) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shards_that_are_none(tmp_path: Path, videos: list[Annotation]) -> None:
    whole = pack(tmp_path / "whole.tar", ("1.mp4", videos[0].path.read_bytes()), ("1.json", LABEL))
    content = whole.read_bytes()
    for name, damaged in (("cut", content[:2000]), ("text", b"no tar" * 200), ("empty", b"")):
        (tmp_path / f"{name}.tar").write_bytes(damaged)
        with pytest.raises(AnnotationError, match=rf"{name}\.tar: cannot be read as an uncompressed tar file"):
            read_shards(tmp_path / f"{name}.tar")
    for source, message in (
        ("s3://bucket/a.tar", "read from a local disk; download them first"),
        ("pipe:cat a.tar", "download them first"),
        (str(tmp_path / "b-{0..3}.tar"), r"b-0\.tar: no such shard"),
    ):
        with pytest.raises(AnnotationError, match=message):
            read_shards(source)


def test_a_shard_that_changes_later_is_an_error_of_its_videos(videos: list[Annotation], tmp_path: Path) -> None:
    shard = pack(tmp_path / "a.tar", ("1.mp4", videos[0].path.read_bytes()), ("1.json", LABEL))
    dataset = VideoDataset(read_shards(shard), ["wave"], CLIP)
    pack(shard, ("2.mp4", videos[0].path.read_bytes()), ("2.json", LABEL))
    module._video_extents.cache_clear()
    sample = dataset[0]
    assert sample.clips is None
    assert "no video 1.mp4" in sample.error


def test_what_cannot_be_written(videos: list[Annotation], tmp_path: Path) -> None:
    twins = [videos[0], Annotation(videos[0].path.with_suffix(".avi"), "blue")]
    (tmp_path / "frames").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for rows, target, message in (
        (twins, "new", r"blue0\.avi: would have the key .*blue0 in a shard, like .*blue0\.mp4; rename"),
        ([Annotation(tmp_path / "frames", "a")], "new", "folder of frames does not fit"),
        ([*videos, Annotation(tmp_path / "gone.mp4", "red")], "new", r"gone\.mp4: cannot be read \(No such file"),
        (videos, "full", "is there already"),
        ([], "new", "no videos to write"),
    ):
        with pytest.raises(AnnotationError, match=message):
            write_shards(rows, tmp_path / target)
    assert sorted(child.name for child in tmp_path.iterdir()) == ["frames", "full"]


def test_dots_in_a_name_do_not_end_its_key(videos: list[Annotation], tmp_path: Path) -> None:
    path = tmp_path / "take.1.final.mp4"
    path.write_bytes(videos[0].path.read_bytes())
    (shard,) = write_shards([Annotation(path, "red")], tmp_path / "shards")
    (row,) = read_shards(shard)
    assert row.path == shard / "take_1_final.mp4"


def test_the_command(colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "shards"
    assert main(["data", "shards", str(colours), "-o", str(target), "--per-shard", "6", "--shuffle", "1"]) == 0
    assert f"15 videos and 15 rows written to 3 shards in {target}" in capsys.readouterr().out
    labels = [row.label for row in read_annotations(target)]
    assert labels != sorted(labels) == ["blue"] * 5 + ["green"] * 5 + ["red"] * 5
    assert main(["data", "shards", str(colours), "-o", str(target)]) == 2
    assert "is there already" in capsys.readouterr().err

"""Small trees as the owners of the datasets ship them, made into manifests."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from helpers import touch
from uniformerv2.curation.importers import ImportOptions, ImportResult, import_dataset
from uniformerv2.curation.published import DATASETS, dataset_name
from uniformerv2.curation.video_index import VideoIndex
from uniformerv2.data.sources import read_annotations
from uniformerv2.errors import AnnotationError


def text(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(encoding))
    return path


def run(dataset: str, annotations: Path | Sequence[Path], videos: Path, **options: object) -> ImportResult:
    files = [annotations] if isinstance(annotations, Path) else list(annotations)
    return import_dataset(dataset, files, videos, videos.parent / "out.csv", options=ImportOptions(**options))  # type: ignore[arg-type]


def rows(videos: Path) -> list[tuple[object, ...]]:
    """What was written: path from the folder of videos, label, start, end, split."""
    return [
        (row.path.relative_to(videos).as_posix(), row.label, row.start, row.end, row.split)
        for row in read_annotations(videos.parent / "out.csv")
    ]


# --- Kinetics

K400 = """label,youtube_id,time_start,time_end,split,is_cc
abseiling,0wR5jVB-WPk,417,427,val,0
"massaging person's head",-_3caPS4FHF,36,46,val,1
abseiling,gone5678901,0,10,val,0
hugging,zzzzzzzzzzz,3,13,val,0
"""


def test_kinetics_clips_in_folders_of_classes(tmp_path: Path) -> None:
    videos = touch(
        tmp_path / "videos",
        "val/abseiling/0wR5jVB-WPk_000417_000427.mp4",
        "val/massaging_person's_head/-_3caPS4FHF_000036_000046.mkv",
        "val/hugging/zzzzzzzzzzz.mp4.webm",
        "readme.txt",
    )
    result = run("k400", text(tmp_path / "kinetics-400_val.csv", K400), videos)
    assert rows(videos) == [
        ("val/abseiling/0wR5jVB-WPk_000417_000427.mp4", "abseiling", None, None, "val"),
        ("val/massaging_person's_head/-_3caPS4FHF_000036_000046.mkv", "massaging person's head", None, None, "val"),
        ("val/hugging/zzzzzzzzzzz.mp4.webm", "hugging baby", None, None, "val"),
    ]
    assert (result.rows, result.written, dict(result.left_out)) == (4, 3, {"no such file": 1})
    assert result.example["no such file"].endswith("kinetics-400_val.csv, line 4: gone5678901_000000_000010")
    assert result.respelled == {"hugging": "hugging baby"}  # of the official list


def test_kinetics_in_the_owners_names_and_whole_videos(tmp_path: Path) -> None:
    videos = touch(tmp_path / "videos", "0wR5jVB-WPk_000417_000427.mp4", "zzzzzzzzzzz.avi")
    lists = text(tmp_path / "val.csv", K400)
    run("kinetics400", lists, videos, order="mmaction2", untrimmed=True)
    assert rows(videos) == [
        ("0wR5jVB-WPk_000417_000427.mp4", "abseiling", None, None, "val"),  # a clip, by its name
        ("zzzzzzzzzzz.avi", "hugging", 3.0, 13.0, "val"),
    ]


def test_several_files_of_a_name(tmp_path: Path) -> None:
    """The folder of the split or of the class decides; else nobody can know."""
    names = ("train/0wR5jVB-WPk.mp4", "val/0wR5jVB-WPk.mp4", "a/zzzzzzzzzzz.mp4", "b/zzzzzzzzzzz.webm")
    videos = touch(tmp_path / "videos", *names)
    result = run("k400", text(tmp_path / "val.csv", K400), videos)
    assert [row[0] for row in rows(videos)] == ["val/0wR5jVB-WPk.mp4"]
    assert result.left_out == {"several files of that name": 1, "no such file": 2}
    assert "a/zzzzzzzzzzz.mp4 and b/zzzzzzzzzzz.webm" in result.example["several files of that name"]


def test_test_lists_without_labels_are_counted(tmp_path: Path) -> None:
    videos = touch(tmp_path / "videos", "0wR5jVB-WPk.mp4", "--6bJUbfpnQ.mp4")
    test = text(tmp_path / "test.csv", "youtube_id,time_start,time_end,split\n--6bJUbfpnQ,17,27,test\n")
    result = run("k400", [text(tmp_path / "val.csv", K400), test], videos)
    assert result.left_out["no label"] == 1
    result = run("k400", [text(tmp_path / "val.csv", K400), test], videos, split="val")
    assert result.left_out == {"no such file": 3, "of another split": 1}


def test_kinetics_700_2020(tmp_path: Path) -> None:
    videos = touch(tmp_path / "videos", "clay_pottery_making/---0dWlqevI_000019_000029.mp4")
    lists = text(
        tmp_path / "kinetics700_2020/train.csv",
        "label,youtube_id,time_start,time_end,split\nclay pottery making,---0dWlqevI,19,29,train\n",
    )
    assert run("K700-2020", lists.parent, videos).written == 1


@pytest.mark.parametrize(("edition", "part"), [("400", "val"), ("400", "test"), ("600", "val"), ("600", "test")])
def test_published_kinetics_lists_import_whole(shared: Path, tmp_path: Path, edition: str, part: str) -> None:
    lists = shared / "data" / "labels" / "kinetics_csv" / f"kinetics-{edition}_{part}.csv"
    with lists.open(newline="") as file:
        published = list(csv.DictReader(file))
    videos = tmp_path / "videos"
    videos.mkdir()
    names = {f"{row['youtube_id']}_{int(row['time_start']):06}_{int(row['time_end']):06}.mp4" for row in published}
    for name in sorted(names)[: len(names) // 50]:
        (videos / name).touch()
    if part == "test":
        with pytest.raises(AnnotationError, match=f"no row is left to write: {len(published)} no label"):
            run(f"k{edition}", lists, videos)
        return
    result = run(f"k{edition}", lists, videos, order="mmaction2")
    assert result.written == len(names) // 50
    assert result.left_out == {"no such file": len(published) - result.written}
    assert not result.respelled
    label_of = {f"{row['youtube_id']}_{int(row['time_start']):06}": row["label"] for row in published}
    assert all(label == label_of[str(path)[:18]] and split == "val" for path, label, _, _, split in rows(videos))


# --- lists of the official UniFormerV2 data


@pytest.mark.parametrize("separator", [" ", ","])
def test_official_lists(tmp_path: Path, separator: str) -> None:
    videos = touch(tmp_path / "videos", "abseiling/a b.mp4", "x.mp4")
    lines = (("k400/abseiling/a b.mp4", "1"), ("x.mp4", "399"), ("gone.mp4", "0"))
    lists = text(tmp_path / "train.csv", "".join(separator.join(line) + "\n" for line in lines))
    result = run("k400", lists, videos, official_lists=True)
    assert rows(videos)[0] == ("abseiling/a b.mp4", "marching", None, None, "train")
    assert result.left_out == {"no such file": 1}
    run("k400", lists, videos, official_lists=True, order="mmaction2")
    assert [row[1] for row in rows(videos)] == ["air drumming", "zumba"]


def test_official_something_something_list(tmp_path: Path) -> None:
    videos = touch(tmp_path / "frames", "78687/00001.jpg", "78687/00002.jpg")
    run("ssv2", text(tmp_path / "validation.csv", "78687 2 1\n"), videos, official_lists=True)
    assert rows(videos) == [("78687", "Attaching something to something", None, None, "val")]


def test_official_activitynet_list(tmp_path: Path) -> None:
    videos = touch(tmp_path / "videos", "v_abcdefghijk.mp4")
    for name, interval in (("train.csv", (2.5, 7.0)), ("val.csv", (None, None))):
        run("anet", text(tmp_path / name, "v_abcdefghijk.mp4,20.5,2.5,7,4\n"), videos, official_lists=True)
        assert rows(videos) == [("v_abcdefghijk.mp4", "Baking cookies", *interval, name[:-4])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.mp4 400\n", "line 1: found class 400, expected one of the 400 of kinetics400, from 0"),
        ("a.mp4 1\na.mp4 abseiling\n", "line 2: found 'a.mp4 abseiling', expected PATH CLASS"),
        ("a.mp4 -1\n", "line 1: found 'a.mp4 -1', expected PATH CLASS"),
        ("../a.mp4 1\n", r"line 1: found '..' in the path '../a', expected none"),
    ],
)
def test_invalid_official_lists(tmp_path: Path, content: str, message: str) -> None:
    videos = touch(tmp_path / "videos", "a.mp4")
    with pytest.raises(AnnotationError, match=message):
        run("k400", text(tmp_path / "train.csv", content), videos, official_lists=True)


# --- the other datasets


def test_moments_in_time(tmp_path: Path) -> None:
    root = tmp_path / "Moments_in_Time_256x256_30fps"
    videos = touch(
        tmp_path / "Moments_in_Time_256x256_30fps",
        "training/clapping/yt-v2dYhAUgTEc_28.mp4",
        "training/adult+male+singing/flickr-0-2, 7.mp4",
        "validation/clapping/yt-v2dYhAUgTEc_28.mp4",
        "validation/clapping/both.mp4",
    )
    text(
        root / "trainingSet.csv",
        'clapping/yt-v2dYhAUgTEc_28.mp4,clapping,3,0\n"adult+male+singing/flickr-0-2, 7.mp4",adult+male+singing,4,1\n'
        "praying/yt-v2dYhAUgTEc_28.mp4,praying,3,0\nclapping/both.mp4,clapping,3,0\n",
    )
    text(root / "validationSet.csv", "clapping/yt-v2dYhAUgTEc_28.mp4,clapping,3,1\n")
    text(root / "moments_categories.txt", "clapping,0\npraying,1\n")
    result = run("mit", root, videos)
    assert rows(videos) == [
        ("training/clapping/yt-v2dYhAUgTEc_28.mp4", "clapping", None, None, "train"),
        ("training/adult+male+singing/flickr-0-2, 7.mp4", "adult+male+singing", None, None, "train"),
        ("validation/clapping/yt-v2dYhAUgTEc_28.mp4", "clapping", None, None, "val"),
    ]
    assert result.left_out == {"no such file": 2}  # of these names there are videos, but of another class or split


def test_something_something_v1(tmp_path: Path) -> None:
    labels = tmp_path / "annotations"
    text(
        labels / "something-something-v1-train.csv",
        "100218;Something falling like a feather or paper\n24413;Unfolding something\n",
    )
    text(labels / "something-something-v1-validation.csv", "74225;Pretending to put something on a surface\n")
    text(labels / "something-something-v1-test.csv", "50\n")
    text(labels / "something-something-v1-labels.csv", "Holding something\nUnfolding something\n")
    videos = touch(
        tmp_path / "20bn-something-something-v1",
        "100218/00001.jpg",
        "100218/00002.jpg",
        "74225/00001.jpg",
        "50/00001.jpg",
    )
    result = run("ssv1", labels, videos)
    assert rows(videos) == [
        ("100218", "Something falling like a feather or paper", None, None, "train"),
        ("74225", "Pretending to put something on a surface", None, None, "val"),
    ]
    assert result.left_out == {"no such file": 1, "no label": 1}


def test_something_something_v2(tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    entry = {
        "id": "78687",
        "label": "holding potato next to vicks vaporub bottle",
        "template": "Holding [something] next to [something]",
        "placeholders": ["potato", "vicks vaporub bottle"],
    }
    text(labels / "something-something-v2-train.json", json.dumps([entry]))
    other = {"id": "42", "template": "Putting [something similar to other things that are already on the table]"}
    text(labels / "something-something-v2-validation.json", json.dumps([other]))
    text(labels / "something-something-v2-test.json", json.dumps([{"id": "1420"}]))
    text(
        labels / "something-something-v2-test-answers.csv",
        "1420;Lifting something up completely, then letting it drop down\n",
    )
    text(labels / "something-something-v2-labels.json", json.dumps({"Holding something next to something": "0"}))
    videos = touch(tmp_path / "20bn-something-something-v2", "78687.webm", "42.webm", "1420.webm")
    result = run("ssv2", labels, videos)
    assert rows(videos) == [
        ("1420.webm", "Lifting something up completely, then letting it drop down", None, None, "test"),
        ("78687.webm", "Holding something next to something", None, None, "train"),
        ("42.webm", "Putting something similar to other things that are already on the table", None, None, "val"),
    ]
    assert result.left_out == {"no label": 1}


def activitynet(**videos: tuple[str, list[tuple[float, float, str]]]) -> str:
    database = {
        name: {
            "duration": 82.73,
            "subset": subset,
            "resolution": "320x240",
            "url": f"https://www.youtube.com/watch?v={name}",
            "annotations": [{"segment": [start, end], "label": label} for start, end, label in segments],
        }
        for name, (subset, segments) in videos.items()
    }
    return json.dumps({"version": "VERSION 1.3", "taxonomy": [], "database": database})


def test_activitynet(tmp_path: Path) -> None:
    """Segments to train on, the whole video to test on: the official protocol."""
    segments = [(1.5, 20.25, "Drinking coffee"), (30, 40, "Drinking coffee")]
    published = activitynet(
        one=("training", segments),
        two=("validation", segments),
        three=("validation", [(0.0, 1.0, "Drinking coffee"), (2.0, 3.0, "Hopscotch")]),
        four=("testing", []),
        five=("training", segments[:1]),
    )
    videos = touch(tmp_path / "videos", *(f"v_{name}.mp4" for name in ("one", "three", "four")), "v_two.mkv")
    result = run("activitynet", text(tmp_path / "activity_net.v1-3.min.json", published), videos)
    assert rows(videos) == [
        ("v_one.mp4", "Drinking coffee", 1.5, 20.25, "train"),
        ("v_one.mp4", "Drinking coffee", 30.0, 40.0, "train"),
        ("v_two.mkv", "Drinking coffee", None, None, "val"),
    ]
    assert result.left_out == {"several classes in one video": 1, "no label": 1, "no such file": 1}


def test_hacs_segments(tmp_path: Path) -> None:
    published = activitynet(abcdefghijk=("training", [(3.0, 9.0, "Rope skipping")]))
    videos = touch(tmp_path / "videos", "training/Rope_skipping/v_abcdefghijk.mp4")
    run("hacs", text(tmp_path / "HACS_segments_v1.1.1.json", published), videos)
    assert rows(videos) == [("training/Rope_skipping/v_abcdefghijk.mp4", "Rope skipping", 3.0, 9.0, "train")]


def test_hacs_clips(tmp_path: Path) -> None:
    published = (
        "classname,youtube_id,subset,start,end,label\n"
        "Archery,a2X2hz1G6i8,training,15.5,17.5,1\n"
        "Archery,NUdji_CqvcY,training,77.5,79.5,-1\n"
        "Cumbia,a2X2hz1G6i8,training,4.0,6.0,1\n"
        "Archery,bbbbbbbbbbb,validation,1.0,3.0,1\n"
    )
    videos = touch(
        tmp_path / "videos", "Archery/v_a2X2hz1G6i8.mp4", "Cumbia/v_a2X2hz1G6i8.mp4", "Archery/v_bbbbbbbbbbb.mp4"
    )
    result = run("hacs", text(tmp_path / "HACS_clips_v1.1.1.csv", published), videos)
    assert rows(videos) == [
        ("Archery/v_a2X2hz1G6i8.mp4", "Archery", 15.5, 17.5, "train"),
        ("Cumbia/v_a2X2hz1G6i8.mp4", "Cumbia", 4.0, 6.0, "train"),
        ("Archery/v_bbbbbbbbbbb.mp4", "Archery", 1.0, 3.0, "val"),
    ]
    assert result.left_out == {"negative example": 1}


def ucf101(tmp_path: Path) -> tuple[Path, Path]:
    lists = tmp_path / "ucfTrainTestlist"
    text(lists / "classInd.txt", "1 ApplyEyeMakeup\r\n2 ApplyLipstick\r\n")
    for fold, (train, test) in enumerate((("g08", "g01"), ("g01", "g08"), ("g08", "g01")), start=1):
        text(
            lists / f"trainlist0{fold}.txt",
            f"ApplyEyeMakeup/v_ApplyEyeMakeup_{train}_c01.avi 1\r\n"
            f"HandstandPushups/v_HandStandPushups_{train}_c01.avi 37\r\n",
        )
        text(lists / f"testlist0{fold}.txt", f"ApplyEyeMakeup/v_ApplyEyeMakeup_{test}_c01.avi\r\n")
    videos = touch(
        tmp_path / "UCF-101",
        *(f"ApplyEyeMakeup/v_ApplyEyeMakeup_{group}_c01.avi" for group in ("g01", "g08")),
        "HandstandPushups/v_HandStandPushups_g08_c01.avi",
    )
    return lists, videos


def test_ucf101(tmp_path: Path) -> None:
    lists, videos = ucf101(tmp_path)
    result = run("ucf101", lists, videos, fold=1)
    assert rows(videos) == [
        ("ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi", "ApplyEyeMakeup", None, None, "test"),
        ("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "ApplyEyeMakeup", None, None, "train"),
        ("HandstandPushups/v_HandStandPushups_g08_c01.avi", "HandstandPushups", None, None, "train"),
    ]
    assert not result.left_out
    assert run("ucf101", lists, videos, fold=2).left_out == {"no such file": 1}
    assert run("ucf101", lists / "testlist01.txt", videos).written == 1  # of one split, there is nothing to choose
    with pytest.raises(AnnotationError, match=r"files of the splits \[1, 2, 3\]; choose one with --fold"):
        run("ucf101", lists, videos)


def test_hmdb51(tmp_path: Path) -> None:
    lists = tmp_path / "testTrainMulti_7030_splits"
    for fold in (1, 2):
        marks = (1, 2, 0) if fold == 1 else (0, 1, 2)
        names = ("April_09_brush_hair_u_nm_np1_ba_goo_0", "#20_Rhythm_clap_u_nm_np1_fr_goo_0", "with space_f_cm_np1")
        lines = (f"{name}.avi {mark} \n" for name, mark in zip(names, marks, strict=True))
        text(lists / f"brush_hair_test_split{fold}.txt", "".join(lines))
    videos = touch(tmp_path / "hmdb51_org", *(f"brush_hair/{name}.avi" for name in names), f"clap/{names[1]}.avi")
    result = run("hmdb51", lists, videos, fold=1)
    assert rows(videos) == [
        (f"brush_hair/{names[0]}.avi", "brush_hair", None, None, "train"),
        (f"brush_hair/{names[1]}.avi", "brush_hair", None, None, "test"),
    ]
    assert result.left_out == {"unused in this split": 1}


def test_published_hmdb51_splits(shared: Path, tmp_path: Path) -> None:
    """Each split has 70 videos of a class to train on and 30 to test on."""
    lists = shared / "data" / "labels" / "hmdb51_splits"
    videos = tmp_path / "videos"
    for file in sorted(lists.glob("*_test_split3.txt")):
        label = file.name.removesuffix("_test_split3.txt")
        (videos / label).mkdir(parents=True)
        for line in file.read_text().splitlines():
            (videos / label / line.split()[0]).touch()
    result = run("hmdb51", lists, videos, fold=3)
    counts = Counter((row[1], row[4]) for row in rows(videos))
    assert set(counts.values()) == {70, 30}
    assert len(counts) == 102
    assert result.left_out.keys() == {"unused in this split"}
    assert result.rows == 6766  # every video of the dataset


def test_ava_is_a_table_of_boxes(tmp_path: Path) -> None:
    published = (
        "-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,80,1\n-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,9,1\n"
        "-5KQ66BBWC4,0903\ngonegonegon,0902,0.1,0.1,0.2,0.2,12,0\n"
    )
    lists = text(tmp_path / "ava/ava_train_v2.2.csv", published).parent
    text(
        lists / "ava_action_list_v2.2.pbtxt",
        'item {\n  name: "watch (a person)"\n  id: 80\n}\nitem {\n  name: "eat"\n  id: 9\n}\n',
    )
    videos = touch(tmp_path / "videos", "-5KQ66BBWC4.mkv")
    result = run("ava", lists, videos)
    with (tmp_path / "out.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    box = {"time": "902.0", "x1": "0.077", "y1": "0.151", "x2": "0.283", "y2": "0.811", "person": "1"}
    assert table == [
        {"video": "videos/-5KQ66BBWC4.mkv", **box, "label": name, "split": "train"}
        for name in ("watch (a person)", "eat")
    ]
    assert result.left_out == {"no box": 1, "no such file": 1}
    with pytest.raises(AnnotationError, match="its rows are boxes in frames"):  # so nobody trains on it by mistake
        read_annotations(tmp_path / "out.csv")


def test_a_folder_per_class(tmp_path: Path) -> None:
    videos = touch(tmp_path / "videos", "wave/a.mp4", "jump/b.mp4", "jump/c/1.jpg")
    assert run("folder", [], videos).written == 3
    assert [row[:2] for row in rows(videos)] == [("jump/b.mp4", "jump"), ("jump/c", "jump"), ("wave/a.mp4", "wave")]


def test_a_manifest_of_other_paths(tmp_path: Path) -> None:
    videos = touch(tmp_path / "videos", "wave/a.mp4", "jump/b.webm")
    lists = text(
        tmp_path / "old.csv",
        'split,label,path,start,end\nval,"wave, ""fast""",/mnt/old/wave/a.mp4,1,2\n,jump,jump/b.avi,,\n,jump,x.mp4,,\n',
    )
    result = run("manifest", lists, videos)
    assert rows(videos) == [("wave/a.mp4", 'wave, "fast"', 1.0, 2.0, "val"), ("jump/b.webm", "jump", None, None, None)]
    assert result.left_out == {"no such file": 1}


# --- what bad input gets

HEADER = "label,youtube_id,time_start,time_end,split\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.mp4 1\n", "line 1: expected the column names .*--format official"),
        ("", r"line 1: expected the column names label,youtube_id,time_start,time_end,split, found nothing"),
        ("label,time_start,time_end\n", "line 1: expected the column names .*, found label,time_start,time_end"),
        (HEADER + "abseiling,aaaaaaaaaaa,1\n", r"line 2: found 3 cells, expected 5"),
        (HEADER + "abseiling, on a rope,aaaaaaaaaaa,1,2,val\n", "line 2: found 6 cells, .* double quotes"),
        (HEADER + "abseiling,aaaaaaaaaaa,-1,2,val\n", "line 2: start is -1; it must be 0 or more seconds"),
        (HEADER + "abseiling,aaaaaaaaaaa,12,2,val\n", "line 2: the interval from 12 s to 2 s is empty"),
        (HEADER + "abseiling,aaaaaaaaaaa,0:12,2,val\n", "line 2: start is '0:12'; it must be a number of seconds"),
        (
            HEADER + "\nabsailing,aaaaaaaaaaa,1,2,val\n",
            "line 3: label 'absailing' is none of the 400 .* is 'abseiling'",
        ),
        (HEADER + 'abseiling,aaaaaaaaaaa,1,2,val\n"abseiling,bbbbbbbbbbb,1,2,val\n', "line 3: cannot be read as CSV"),
        (
            HEADER + "abseiling,aaaaaaaaaaa,1,2,val\nzumba,aaaaaaaaaaa,5,6,val\n",
            r"line 3: aaaaaaaaaaa.mp4 is 'zumba' \(val\), but 'abseiling' \(val\) in .*list.csv, line 2; remove one",
        ),
        (
            HEADER + "abseiling,aaaaaaaaaaa,1,2,val\nabseiling,aaaaaaaaaaa,1,2,train\n",
            r"line 3: aaaaaaaaaaa.mp4 is 'abseiling' \(train\), but 'abseiling' \(val\)",
        ),
    ],
)
def test_invalid_rows(tmp_path: Path, content: str, message: str) -> None:
    videos = touch(tmp_path / "videos", "aaaaaaaaaaa.mp4", "bbbbbbbbbbb.mp4")
    lists = text(tmp_path / "list.csv", content)
    text(tmp_path / "out.csv", "as it was")
    with pytest.raises(AnnotationError, match=message) as caught:
        run("k400", lists, videos)
    assert str(caught.value).startswith(f"{lists}, line ")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "out.csv").read_text() == "as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.csv", "out.csv", "videos"]


def test_lists_that_are_not_utf8(tmp_path: Path) -> None:
    videos = touch(tmp_path / "videos", "aaaaaaaaaaa.mp4")
    good = "abseiling,aaaaaaaaaaa,1,2,val\n" * 20_000  # read in pieces, long before the bad line
    lists = text(tmp_path / "list.csv", HEADER + good + "capoeïra,aaaaaaaaaaa,1,2,val\n", "latin-1")
    with pytest.raises(AnnotationError, match="line 20002: byte 0xef at position 6 is not UTF-8"):
        run("k400", lists, videos)
    with pytest.raises(AnnotationError, match="line 1: byte 0xff"):
        run("k400", text(tmp_path / "list.csv", HEADER, "utf-16"), videos)


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    videos = touch(tmp_path / "videos", "0wR5jVB-WPk.mp4")
    assert run("k400", text(tmp_path / "list.csv", K400.replace("\n", "\r\n"), "utf-8-sig"), videos).written == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"database": {', "line 1: cannot be read as JSON"),
        ("[]", r'expected an object with "database"'),
        ('{"database": {"x": 5}}', "entry 1: 'x' is 5, expected a subset and annotations"),
        (activitynet(x=("training", [(5, 4, "Hopscotch")])), "entry 1: the interval from 5 s to 4 s is empty"),
        (
            activitynet(x=("training", [(1, 4, "Hop-skotch")])),
            "entry 1: label 'Hop-skotch' is .* nearest is 'Hopscotch'",
        ),
        ('{"database": {"x": {"subset": "training", "annotations": [{}]}}}', "entry 1: 'x' has the annotation {}"),
    ],
)
def test_invalid_json(tmp_path: Path, content: str, message: str) -> None:
    videos = touch(tmp_path / "videos", "v_x.mp4")
    with pytest.raises(AnnotationError, match=message):
        run("anet", text(tmp_path / "a.json", content), videos)


def test_lenient_counts_invalid_rows(tmp_path: Path) -> None:
    videos = touch(tmp_path / "videos", "aaaaaaaaaaa.mp4")
    bad = "absailing,aaaaaaaaaaa,1,2,val\nabseiling,aaaaaaaaaaa,9,2,val\nabseiling,aaaaaaaaaaa,1,2,val\n"
    lists = text(tmp_path / "list.csv", HEADER + bad + "zumba,aaaaaaaaaaa,1,2,val\nabseiling,aaaaaaaaaaa,1,2,val\n")
    result = run("k400", lists, videos, lenient=True)
    assert [row[1] for row in rows(videos)] == ["abseiling"]
    assert result.left_out == {"invalid": 2, "contradicts another row": 1, "repeats another row": 1}


def test_strict_wants_every_video_that_the_owner_does_not_leave_out(tmp_path: Path) -> None:
    videos = touch(tmp_path / "videos", "0wR5jVB-WPk.mp4", "brush_hair/a.avi")
    with pytest.raises(AnnotationError, match="line 3: no such file: -_3caPS4FHF_000036_000046; without --strict"):
        run("k400", text(tmp_path / "val.csv", K400), videos, strict=True)
    lists = text(tmp_path / "brush_hair_test_split1.txt", "a.avi 1 \nb.avi 0 \n")
    assert run("hmdb51", lists, videos, strict=True).left_out == {"unused in this split": 1}


def test_a_report_names_every_row_left_out(tmp_path: Path) -> None:
    videos = touch(tmp_path / "videos", "0wR5jVB-WPk.mp4")
    lists, report = text(tmp_path / "val.csv", K400), tmp_path / "left_out.csv"
    import_dataset("k400", [lists], videos, tmp_path / "out.csv", left_out=report)
    with report.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["cause"], row["line"], row["name"]) for row in table] == [
        ("no such file", "3", "-_3caPS4FHF_000036_000046"),
        ("no such file", "4", "gone5678901_000000_000010"),
        ("no such file", "5", "zzzzzzzzzzz_000003_000013"),
    ]
    assert {row["file"] for row in table} == {str(lists)}


@pytest.mark.parametrize(
    ("dataset", "file", "folder", "message"),
    [
        ("kinetics500", "none.csv", "videos", "dataset 'kinetics500': it must be one of kinetics400, "),
        ("kinetics", "none.csv", "videos", "dataset 'kinetics': it must be one of kinetics400, "),
        ("k710", "none.csv", "videos", "data kinetics710"),
        ("k400", "none.csv", "videos", "none.csv: cannot be read: No such file"),
        ("ucf101", "videos", "videos", "no annotations among .*; expected files such as trainlist"),
        ("k400", "none.csv", "elsewhere", "elsewhere: no such folder of videos"),
    ],
)
def test_datasets_and_files_that_do_not_exist(
    tmp_path: Path, dataset: str, file: str, folder: str, message: str
) -> None:
    touch(tmp_path, "videos/a.mp4")
    with pytest.raises(AnnotationError, match=message):
        run(dataset, tmp_path / file, tmp_path / folder)


def test_names_of_datasets() -> None:
    names = {"K400": "kinetics400", "k700-2020": "kinetics700_2020", "SSv2": "something_something_v2"}
    names |= {"mit": "moments_in_time", "AVA": "ava"} | {name: name for name in DATASETS}
    assert {name: dataset_name(name) for name in names} == names


# --- paths and the index


def test_paths_are_relative_where_that_can_be(tmp_path: Path) -> None:
    videos = touch(tmp_path / "a/videos", "wave/x.mp4")
    lists = text(tmp_path / "l.csv", "path,label\nwave/x.mp4,wave\n")
    for target, root, written in (
        (tmp_path / "a/out.csv", None, "videos/wave/x.mp4"),
        (videos / "out.csv", None, "wave/x.mp4"),
        (tmp_path / "b/out.csv", None, f"{videos}/wave/x.mp4"),
        (tmp_path / "b/out.csv", tmp_path, "a/videos/wave/x.mp4"),
    ):
        target.parent.mkdir(exist_ok=True)
        import_dataset("manifest", [lists], videos, target, root=root)
        assert target.read_text().splitlines()[1] == f"{written},wave,,,"
        assert read_annotations(target, root=root)[0].path == videos / "wave/x.mp4"


def test_an_index_follows_links_and_ends(tmp_path: Path) -> None:
    touch(tmp_path / "store", "a.mp4", ".hidden/b.mp4", "frames/1.jpg", "both/cover.jpg", "both/c.mp4")
    (tmp_path / "store/loop").symlink_to(tmp_path / "store")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/link").symlink_to(tmp_path / "store")
    index = VideoIndex(tmp_path / "videos")
    found = {name: index.find(name) for name in ("a", "b", "c", "frames", "both", "cover")}
    assert found.pop("a") == ("link/a.mp4",)
    assert found == {"b": (), "c": ("link/both/c.mp4",), "frames": ("link/frames",), "both": (), "cover": ()}


def test_importers_do_not_wait_for_torch() -> None:
    code = (
        "import sys, uniformerv2.cli.datasets, uniformerv2.curation.importers, uniformerv2.curation.kinetics710; "
        "from uniformerv2.weights.labels import class_list; "
        "assert not {'torch', 'av', 'numpy', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""Videos with several labels: rows joined, columns of labels, splits, batches."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import touch
from uniformerv2.data.annotations import Annotation, class_names
from uniformerv2.data.dataset import VideoDataset, make_loader
from uniformerv2.data.manifest import write_manifest
from uniformerv2.data.sources import read_annotations
from uniformerv2.data.split import split_annotations
from uniformerv2.errors import AnnotationError
from uniformerv2.measuring.labels import match_labels
from uniformerv2.model.config import Preprocessing
from uniformerv2.video.augmentation import Augmentation

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A manifest of these lines, and empty files a.mp4, b.mp4 and c.mp4 beside it."""
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")

    def written(*lines: str) -> Path:
        path = tmp_path / "videos.csv"
        path.write_text("\n".join(lines) + "\n")
        return path

    return written


def labels_of(manifest: Path, **options: object) -> dict[str, tuple[str, ...]]:
    rows = read_annotations(manifest, several_labels=True, **options)  # type: ignore[arg-type]
    return {f"{row.path.name} {row.start or 0:g}": row.labels for row in rows}


def test_rows_of_one_video_at_the_same_time_are_one_with_all_labels(write: Write) -> None:
    manifest = write(
        "path,label,start,end", "a.mp4,sit,,", "b.mp4,run,1,2", "a.mp4,eat,,", "a.mp4,sit,,", "b.mp4,run,3,4",
        "b.mp4,jump,1.0,2", "c.mp4,,,",
    )  # fmt: skip
    assert labels_of(manifest) == {
        "a.mp4 0": ("sit", "eat"), "b.mp4 1": ("run", "jump"), "b.mp4 3": ("run",), "c.mp4 0": (),
    }  # fmt: skip
    assert class_names(read_annotations(manifest, several_labels=True)) == ["eat", "jump", "run", "sit"]


def test_a_column_of_labels_has_several(write: Write, recwarn: pytest.WarningsRecorder) -> None:
    manifest = write("path,labels", "a.mp4,sit; eat", "b.mp4,run|jump|run", "c.mp4,")
    assert labels_of(manifest) == {"a.mp4 0": ("sit", "eat"), "b.mp4 0": ("run", "jump"), "c.mp4 0": ()}
    assert not recwarn
    # a column of one label keeps it as it is
    assert labels_of(write("path,label", "a.mp4,sit; eat"))["a.mp4 0"] == ("sit; eat",)


def test_numbers_of_classes_stand_for_their_names(write: Write) -> None:
    manifest = write("path,labels", "a.mp4,0;2", "b.mp4,run")
    assert labels_of(manifest, classes=["sit", "run", "eat"]) == {"a.mp4 0": ("sit", "eat"), "b.mp4 0": ("run",)}
    with pytest.raises(AnnotationError, match=r"line 2: label '7' is neither"):
        labels_of(write("path,labels", "a.mp4,0;7"), classes=["sit", "run", "eat"])


def test_one_file_in_two_class_folders_has_both_labels(tmp_path: Path) -> None:
    touch(tmp_path, "run/a.mp4")
    (tmp_path / "jump").mkdir()
    (tmp_path / "jump/a.mp4").symlink_to(tmp_path / "run/a.mp4")
    assert [row.labels for row in read_annotations(tmp_path, several_labels=True)] == [("jump", "run")]


def test_rows_that_contradict_each_other_are_refused(write: Write) -> None:
    with pytest.raises(AnnotationError, match=r"line 2: .*, line 3: .* --task multilabel"):
        read_annotations(write("path,label", "a.mp4,sit", "a.mp4,eat"))
    # a part shows what the whole lacks
    with pytest.raises(AnnotationError, match="'sit' with 'eat' and 'run'"):
        labels_of(write("path,label,start,end", "a.mp4,sit,,", "a.mp4,eat,,", "a.mp4,run,1,2"))
    assert labels_of(write("path,label,start,end", "a.mp4,sit,,", "a.mp4,eat,,", "a.mp4,eat,1,2")) == {
        "a.mp4 0": ("sit", "eat"), "a.mp4 1": ("eat",),
    }  # fmt: skip
    with pytest.raises(AnnotationError, match=r"line 2: .*, line 3: .* the split train and val"):
        labels_of(write("path,label,split", "a.mp4,sit,train", "a.mp4,eat,val"))


def test_manifests_are_written_with_a_row_for_each_label_and_read_back(write: Write, tmp_path: Path) -> None:
    rows = read_annotations(write("path,labels", "a.mp4,sit;e|f", "b.mp4,", "c.mp4,run"), several_labels=True)
    assert write_manifest(tmp_path / "again.csv", rows) == 5
    assert read_annotations(tmp_path / "again.csv", several_labels=True) == rows


def test_labels_in_the_spelling_of_a_model() -> None:
    rows = [Annotation(Path("a.mp4"), "Sitting", other_labels=("eat",)), Annotation(Path("b.mp4"), "")]
    found, renamed = match_labels(rows, ["eat", "sitting", "run"])
    assert [row.labels for row in found] == [("sitting", "eat"), ()]
    assert renamed == {"Sitting": "sitting"}
    with pytest.raises(AnnotationError, match="label 'fly' is not among"):
        match_labels([Annotation(Path("a.mp4"), "eat", other_labels=("fly",))], ["eat", "run"])


def test_a_drawn_split_holds_out_a_share_of_every_label_and_leaves_some_of_each(tmp_path: Path) -> None:
    """200 files of up to three of ten labels, of which the rarest has two: 20 % of each, but for two files."""
    draw, rows = random.Random(0), []
    for number in range(200):
        shown = [f"c{place}" for place in range(10) if draw.random() < 0.3 / (place + 1)]
        shown += ["rare"] * (number in (5, 90))
        label, *others = shown or [""]
        rows.append(Annotation(tmp_path / f"{number}.mp4", label, other_labels=tuple(others)))
        (tmp_path / f"{number}.mp4").write_bytes(b"%d" % number)
    training, held_out = split_annotations(rows)
    counts = [Counter(label for row in side for label in row.labels) for side in (rows, training, held_out)]
    assert len(training) + len(held_out) == 200
    for label, total in counts[0].items():
        assert counts[1][label] >= 1
        assert abs(counts[2][label] - 0.2 * total) <= 2, label
    unlabelled = [sum(not row.labels for row in side) for side in (rows, held_out)]
    assert abs(unlabelled[1] - 0.2 * unlabelled[0]) <= 1.5
    assert counts[2]["rare"] == 1
    assert split_annotations(rows) == (training, held_out)


def test_a_batch_has_a_one_for_each_class_that_a_video_shows(colours: Path) -> None:
    files = [colours / name / f"{name}0.mp4" for name in ("red", "green", "blue")]
    shown = [("wave", ()), ("go left", ("wave",)), ("", ())]
    rows = [Annotation(file, one, other_labels=rest) for file, (one, rest) in zip(files, shown, strict=True)]
    classes, preprocessing = ("go left", "go right", "wave"), Preprocessing(num_frames=2, size=(32, 32))
    batch = next(
        iter(make_loader(VideoDataset(rows, classes, preprocessing, several_labels=True), batch_size=3, workers=0))
    )
    assert batch.labels.tolist() == [[0, 0, 1], [1, 0, 1], [0, 0, 0]]
    # mirrored, each shows the counterparts of its classes
    always = Augmentation(num_ops=0, flip=1.0, flip_labels="left,right")
    options = {"augmentation": always, "repeats": 2, "mirrored_classes": (1, 0, 2), "several_labels": True}
    dataset = VideoDataset(rows, classes, preprocessing, **options)  # type: ignore[arg-type]
    labels = {dataset.read((row, 1)).path: dataset.read((row, 1)).label for row in range(3)}
    assert list(labels.values()) == [[[0, 0, 1]] * 2, [[0, 1, 1]] * 2, [[0, 0, 0]] * 2]
    # a video with a class that has no counterpart is not mirrored
    options["mirrored_classes"] = (1, 0, None)
    dataset = VideoDataset(rows, classes, preprocessing, **options)  # type: ignore[arg-type]
    assert dataset.read((1, 1)).label == [[1, 0, 1]] * 2

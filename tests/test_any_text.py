"""Any text is a label or the name of a file: property tests of each command that takes either."""

from __future__ import annotations

import csv
import json
import os
import shutil
import unicodedata
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from helpers import Run, coloured, write_video
from models import randomised
from uniformerv2.data.sources import read_annotations
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.text import normalised
from uniformerv2.weights.checkpoint import save_model
from uniformerv2.weights.loading import arm, load_model

HOSTILE = [
    "Putting [something] on [something]", "[/of]", "[red]x[/]", "a, b", '"quoted', "it's", "tab\tand\nnew line\r",
    "<script>alert('&amp;')</script>", "cafe\u0301", "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\U0001f3f3\ufe0f\u200d\U0001f308", "\U0001f44d\U0001f3fd", "x" * 180, "=1+1", "-rf", "# no comment", "%s {x} {0}",
    "back\\slash\\", "\x1b[31mred\x07", "..", "~", "$HOME", "*?[a-z]", "\u2028", "\x85", "\ufeff", "a;b|c", "None",
    "nan", "1e3", "lone\rreturn", "Best video ever [dQw4w9WgXcQ]", "  outer  ", "\ufb01", "\u0130", "\xdf",
    "\u202eevil",
]  # fmt: skip
LABELS = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30),
    st.just("y" * 300),
).filter(normalised)
PAIRS = st.tuples(LABELS, LABELS).filter(lambda pair: normalised(pair[0]) != normalised(pair[1]))


def is_folder_name(name: str) -> bool:
    return "/" not in name and not name.startswith(".") and len(name.encode()) < 200


FOLDERS = st.tuples(LABELS.filter(is_folder_name), LABELS.filter(is_folder_name)).filter(
    lambda pair: len({normalised(name).casefold() for name in pair}) == 2
)
FILES = LABELS.filter(is_folder_name)

EXAMPLES = int(os.environ.get("UNIFORMERV2_EXAMPLES", 36))  # of each command; 200 and more were seen to pass
hostile = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
    phases=[Phase.generate],  # what fails is short already
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Videos of two frames."""
    folder = tmp_path_factory.mktemp("clips")
    return [write_video(folder / f"{seed}.mp4", coloured([0, 1], seed=seed)) for seed in range(4)]


@pytest.fixture(scope="module")
def model(image_model: Path) -> UniFormerV2:
    return randomised(arm(image_model, num_classes=2, num_frames=2, size=(32, 32))).eval()


def labelled(model: UniFormerV2, labels: tuple[str, ...], folder: Path) -> Path:
    model.labels = labels
    save_model(model, folder / "model.safetensors")
    return folder / "model.safetensors"


def class_folders(clips: list[Path], names: tuple[str, str], file: str, folder: Path) -> Path:
    for number, clip in enumerate(clips):
        (folder / names[number % 2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, folder / names[number % 2] / f"{file}{number}.mp4")
    return folder


def manifest(clips: list[Path], labels: tuple[str, str], folder: Path) -> Path:
    with (folder / "videos.csv").open("w", encoding="utf-8", newline="") as file:
        rows = zip(clips, labels, strict=False)
        csv.writer(file, lineterminator="\r\n").writerows([("path", "label"), *rows])  # which quotes \r
    return folder / "videos.csv"


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def lines_are_clean(*outputs: str) -> None:
    """Nothing in them that a terminal obeys."""
    for text in outputs:
        assert not [one for one in text if unicodedata.category(one) in ("Cc", "Zl", "Zp") and one != "\n"], text


@settings(hostile, max_examples=EXAMPLES // 3)  # each is a whole training
@given(names=FOLDERS, file=FILES)
def test_property_train(
    uniformerv2: Run, clips: list[Path], image_model: Path, names: tuple[str, str], file: str
) -> None:
    with TemporaryDirectory() as folder:
        data, run = class_folders(clips, names, file, Path(folder, "data")), Path(folder, "run")
        options = ["--arm", image_model, "--num-frames", 2, "--size", 32, "--epochs", 1, "--workers", 0]
        options += ["--batch-size", 2, "--warmup-epochs", 0, "--precision", "fp32"]
        status, output, errors = uniformerv2("train", data, "-o", run, *options)
        assert status == 0, errors
        lines_are_clean(output, errors)
        assert set(load_model(run / "last.safetensors").labels) == set(map(normalised, names))
        assert uniformerv2("runs", run, "--html", Path(folder, "runs.html"))[0] == 0
        assert "<script>alert" not in Path(folder, "runs.html").read_text(encoding="utf-8")


@hostile
@given(labels=PAIRS)
def test_property_evaluate(uniformerv2: Run, clips: list[Path], model: UniFormerV2, labels: tuple[str, str]) -> None:
    with TemporaryDirectory() as folder:
        checkpoint = labelled(model, labels, Path(folder))
        data, result, table = manifest(clips, labels, Path(folder)), Path(folder, "a.json"), Path(folder, "a.csv")
        options = ["-o", result, "--predictions", table, "--workers", 0]
        status, output, errors = uniformerv2("evaluate", checkpoint, data, *options)
        assert status == 0, errors
        lines_are_clean(output, errors)
        classes = json.loads(result.read_text(encoding="utf-8"))["classes"]
        assert [(one["label"], one["videos"]) for one in classes] == [(normalised(label), 1) for label in labels]
        assert {row["label"] for row in rows_of(table)} == set(map(normalised, labels))


@hostile
@given(labels=PAIRS, file=FILES, command=st.sampled_from(["predict", "predict --json", "timeline"]))
def test_property_predict(
    uniformerv2: Run, clips: list[Path], model: UniFormerV2, labels: tuple[str, str], file: str, command: str
) -> None:
    with TemporaryDirectory() as folder:
        checkpoint, video = labelled(model, labels, Path(folder)), Path(folder, f"{file}.mp4")
        shutil.copy(clips[0], video)
        name, *options = command.split()
        output: list[object] = ["-o", Path(folder, "timeline")] if name == "timeline" else []
        workers = ["--workers", 0] if name == "predict" else []
        status, printed, errors = uniformerv2(name, checkpoint, video, *options, *output, *workers)
        assert status == 0, errors
        lines_are_clean(printed, errors)
        if options:
            assert json.loads(printed)["video"] == str(video)
            assert sorted(json.loads(printed)["labels"]) == sorted(map(normalised, labels))
        elif output:
            table, picture = sorted(Path(folder, "timeline").iterdir(), key=lambda file: file.suffix)
            assert picture.suffix == ".svg"
            written = {row[name] for row in rows_of(table) for name in ("label1", "label2")}
            assert written == set(map(normalised, labels))
        else:
            assert len(printed.splitlines()) == 3


@hostile
@given(labels=PAIRS, file=FILES)
def test_property_features(
    uniformerv2: Run, clips: list[Path], model: UniFormerV2, labels: tuple[str, str], file: str
) -> None:
    with TemporaryDirectory() as folder:
        videos = [Path(folder, f"{number}{file}.mp4") for number in (0, 1)]
        for clip, video in zip(clips, videos, strict=False):
            shutil.copy(clip, video)
        data, result = manifest(videos, labels, Path(folder)), Path(folder, "features.npz")
        checkpoint = labelled(model, labels, Path(folder))
        status, output, errors = uniformerv2("features", checkpoint, data, "-o", result, "--workers", 0)
        assert status == 0, errors
        lines_are_clean(output, errors)
        with np.load(result) as features:
            assert features["labels"].tolist() == [normalised(label) for label in labels]
            assert features["paths"].tolist() == list(map(str, videos))


@hostile
@given(labels=PAIRS)
def test_property_data_check(uniformerv2: Run, clips: list[Path], labels: tuple[str, str]) -> None:
    with TemporaryDirectory() as folder:
        data, clean = manifest(clips, labels, Path(folder)), Path(folder, "clean.csv")
        status, output, errors = uniformerv2("data", "check", data, "-o", clean, "--workers", 0, "--num-frames", 1)
        assert status == 0, errors
        lines_are_clean(output, errors)


@hostile
@given(names=FOLDERS, file=FILES)
def test_property_data_import(uniformerv2: Run, clips: list[Path], names: tuple[str, str], file: str) -> None:
    with TemporaryDirectory() as folder:
        videos, output = class_folders(clips, names, file, Path(folder, "data")), Path(folder, "videos.csv")
        status, printed, errors = uniformerv2("data", "import", "folder", "--videos", videos, "-o", output)
        assert status == 0, errors
        lines_are_clean(printed, errors)
        rows = read_annotations(output)
        assert sorted(row.label for row in rows) == sorted(2 * [normalised(name) for name in names])
        assert all(row.path.is_file() for row in rows)

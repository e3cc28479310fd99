"""`uniformerv2 predict`, `stream` and `timeline`."""

from __future__ import annotations

import csv
import json
import shutil
import wave
from pathlib import Path

import pytest

from helpers import Run, assert_refused, coloured, files_below, noise, write_video
from uniformerv2.predict import Predictor
from uniformerv2.video.views import Views


def test_ranks_the_classes(uniformerv2: Run, checkpoint: Path, video: Path) -> None:
    status, output, errors = uniformerv2("predict", checkpoint, video, "--top-k", 2)
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0] == str(video)
    assert lines[1].endswith("%  red")
    assert len(lines) == 3


def test_json_is_one_object_a_line_and_nothing_else(
    uniformerv2: Run, checkpoint: Path, colours: Path, video: Path, tmp_path: Path
) -> None:
    blue = colours / "blue" / "blue1.mp4"
    status, output, errors = uniformerv2(
        "predict", checkpoint, video, tmp_path / "absent.mp4", blue, "--json", "--clips", 2, "--crops", 3
    )
    assert status == 2
    predictor = Predictor(checkpoint, views=Views(2, 3))
    first, absent, second = map(json.loads, output.splitlines())
    for line, file in ((first, video), (second, blue)):
        prediction = predictor.predict(file)
        labels, scores = list(prediction.labels), list(prediction.scores)
        assert line == {"video": str(file), "labels": labels, "scores": scores, "label": labels[0]}
    assert absent["video"] == str(tmp_path / "absent.mp4")
    assert errors == f"error: {absent['error']}\nerror: 1 of 3 videos could not be read\n"


def test_goes_on_past_bad_videos_and_says_so_at_the_end(
    uniformerv2: Run, checkpoint: Path, video: Path, tmp_path: Path
) -> None:
    absent, broken = tmp_path / "absent.mp4", tmp_path / "broken.mp4"
    broken.write_text("no video")
    status, output, errors = uniformerv2("predict", checkpoint, absent, video, broken, video)
    assert status == 2
    assert output.count(str(video)) == 2
    lines = errors.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    assert [str(absent) in lines[0], str(broken) in lines[1], "2 of 4 videos" in lines[2]] == [True] * 3


# --- many videos into a file


@pytest.fixture
def many(colours: Path, tmp_path: Path) -> Path:
    """A folder of three good videos, two of them in folders below, one that is none, and a note."""
    folder = tmp_path / "videos"
    (folder / "below" / "deep").mkdir(parents=True)
    for name in ("red1", "below/blue2", "below/deep/green3"):
        video = Path(name).name
        shutil.copyfile(colours / video[:-1] / f"{video}.mp4", folder / f"{name}.mp4")
    (folder / "broken.mp4").write_text("no video")
    (folder / "notes.txt").write_text("nothing")
    return folder


EXPECTED = [("below/blue2.mp4", "blue"), ("below/deep/green3.mp4", "green"), ("broken.mp4", None), ("red1.mp4", "red")]


def test_a_folder_of_videos_becomes_a_table(uniformerv2: Run, checkpoint: Path, many: Path, tmp_path: Path) -> None:
    for name in ("a.csv", "a.parquet", "a.jsonl"):
        status, output, errors = uniformerv2("predict", checkpoint, many, "-o", tmp_path / name, "--top-k", 2)
        assert (status, output) == (2, f"3 of 4 videos, written to {tmp_path / name}\n")
        assert errors.splitlines()[-1] == "error: 1 of 4 videos could not be read"
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", "start", "end", "label1", "score1", "label2", "score2", "error"]
    answers = [(str(many / path), label) for path, label in EXPECTED]
    assert [(row["path"], row["label"] or None) for row in rows] == answers
    assert [bool(row["error"]) for row in rows] == [False, False, True, False]
    assert all(row["label1"] == row["label"] for row in rows)
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line.get("label") for line in lines] == [label for _, label in EXPECTED]
    assert lines[2] == {"video": str(many / "broken.mp4"), "error": rows[2]["error"]}
    assert [line["scores"] for line in lines if "scores" in line] == [
        [float(row["score1"]), float(row["score2"])] for row in rows if row["score1"]
    ]
    table = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "a.parquet").to_pylist()
    assert [(row["path"], row["label"]) for row in table] == answers
    assert [row["error"] for row in table] == [row["error"] or None for row in rows]


def test_rows_of_a_manifest_are_predicted_by_their_intervals(
    uniformerv2: Run, checkpoint: Path, tmp_path: Path
) -> None:
    """A video that is red for a second and blue for another, and a file that is gone."""
    write_video(tmp_path / "two.mp4", coloured([0] * 10 + [2] * 10))
    (tmp_path / "list.csv").write_text("path,label,start,end\ntwo.mp4,x,0,0.9\ngone.mp4,x\ntwo.mp4,x,1.1,\n")
    status, _, _ = uniformerv2("predict", checkpoint, tmp_path / "list.csv", "-o", tmp_path / "a.csv")
    assert status == 2
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = [(Path(row["path"]).name, row["start"], row["end"], row["label"]) for row in csv.DictReader(file)]
    assert rows == [("two.mp4", "0.0", "0.9", "red"), ("gone.mp4", "", "", ""), ("two.mp4", "1.1", "", "blue")]
    status, output, _ = uniformerv2("predict", checkpoint, tmp_path / "list.csv", "--top-k", 1)
    parts = ("0 s to 0.9 s", "1.1 s to the end")
    assert output.splitlines()[::2] == [f"{tmp_path / 'two.mp4'} from {part}" for part in parts]
    status, output, _ = uniformerv2("predict", checkpoint, tmp_path / "list.csv", "--json")
    assert [json.loads(line)["start"] for line in output.splitlines() if "start" in line] == [0.0, 1.1]


def test_a_list_needs_no_labels(uniformerv2: Run, checkpoint: Path, colours: Path, tmp_path: Path) -> None:
    expected = {"red/red1.mp4": "red", "blue/blue2.mp4": "blue", "gone.mp4": None}
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in expected))
    (tmp_path / "list.csv").write_text("".join(f"{path}\n" for path in ["path", *expected]))
    for name in ("list.txt", "list.csv"):
        status, _, errors = uniformerv2(
            "predict", checkpoint, tmp_path / name, "--root", colours, "-o", tmp_path / "a.jsonl"
        )
        assert (status, "1 of 3 videos could not be read" in errors) == (2, True)
        lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
        assert {line["video"]: line.get("label") for line in lines} == {
            str(colours / path): label for path, label in expected.items()
        }


def test_below_the_threshold_the_answer_is_none_of_these(
    uniformerv2: Run, checkpoint: Path, colours: Path, tmp_path: Path
) -> None:
    blue, red = colours / "blue" / "blue0.mp4", colours / "red" / "red0.mp4"
    scores = [Predictor(checkpoint).predict(file).scores[0] for file in (blue, red)]
    threshold = sum(scores) / 2
    answers = [label if score >= threshold else None for label, score in zip(("blue", "red"), scores, strict=True)]
    assert answers.count(None) == 1
    command = ["predict", checkpoint, blue, red, "--threshold", threshold]
    _, output, _ = uniformerv2(*command)
    assert output.count("  none of these\n") == 1
    assert output.splitlines()[0 if answers[0] is None else 4 :][1] == "  none of these"
    _, output, _ = uniformerv2(*command, "--json")
    assert [json.loads(line)["label"] for line in output.splitlines()] == answers
    for name in ("a.csv", "a.jsonl"):
        assert uniformerv2(*command, "-o", tmp_path / name)[0] == 0
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] or None for row in rows] == answers
    assert [row["label1"] for row in rows] == ["blue", "red"]
    assert [json.loads(line)["label"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == answers


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--threshold", 1.5], "threshold is a probability"),
        (["-o", "a.txt"], "written to .csv, .jsonl, .parquet, .pq"),
        (["-o", "absent/a.csv"], "no folder"),
        (["-o", "a.jsonl", "--json"], "choose one"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is_read(
    uniformerv2: Run, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[object], part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(uniformerv2("predict", "no-such-model", video, *options), part)
    assert list(tmp_path.iterdir()) == []


def test_puts_videos_together(uniformerv2: Run, checkpoint: Path, colours: Path) -> None:
    videos = sorted(colours.rglob("*0.mp4"))
    one_by_one = uniformerv2("predict", checkpoint, *videos)
    assert uniformerv2("predict", checkpoint, *videos, "--batch-size", 2) == one_by_one
    assert [line for line in one_by_one[1].splitlines() if line[0] != " "] == [str(file) for file in videos]


@pytest.mark.parametrize("kind", ["absent", "empty", "truncated", "text", "audio", "empty folder", "one pixel"])
def test_what_is_no_video(uniformerv2: Run, checkpoint: Path, video: Path, tmp_path: Path, kind: str) -> None:
    bad = tmp_path / "bad.avi"
    contents = {"empty": b"", "truncated": video.read_bytes()[:200], "text": b"this is a text\n" * 100}
    if kind in contents:
        bad.write_bytes(contents[kind])
    elif kind == "audio":
        with wave.open(str(bad), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(bytes(16000))
    elif kind == "empty folder":
        bad.mkdir()
    elif kind == "one pixel":
        write_video(bad, noise(4, 1, 1), codec="rawvideo", pixels="bgr24")
    before = files_below(tmp_path)
    assert_refused(uniformerv2("predict", checkpoint, bad), bad, "1x1" if kind == "one pixel" else "")
    assert files_below(tmp_path) == before


# --- streams and timelines


@pytest.mark.usefixtures("unhurried")
def test_lines_of_a_stream(uniformerv2: Run, checkpoint: Path, video: Path) -> None:
    status, output, errors = uniformerv2("stream", checkpoint, video, "--frames-per-second", 5, "--top-k", 2)
    assert status == 0
    lines = output.splitlines()
    assert [line.split()[0] for line in lines] == ["0.6", "0.8", "1.0"]
    assert all(line.count("%") == 2 and "ms)" in line for line in lines)
    note, end = errors.splitlines()
    assert note.startswith("note: every window is computed whole: ")
    assert end == f"{video}: ended after 6 frames, 0 dropped"


@pytest.mark.usefixtures("unhurried")
def test_a_stream_as_json(uniformerv2: Run, checkpoint: Path, video: Path) -> None:
    status, output, _ = uniformerv2(
        "stream", checkpoint, video, "--frames-per-second", 5, "--json", "--window-frames", 2, "--stride-frames", 2
    )
    assert status == 0
    lines = [json.loads(line) for line in output.splitlines()]
    assert [line["kind"] for line in lines] == ["prediction"] * 3 + ["end"]
    assert [line["frame"] for line in lines] == [1, 3, 5, 6]
    assert sorted(lines[0]["labels"]) == ["blue", "green", "red"]
    assert sum(lines[0]["scores"]) == pytest.approx(1)
    assert lines[0]["dropped"] == lines[0]["damaged"] == 0
    assert lines[0]["latency"] > 0


def test_timelines(uniformerv2: Run, checkpoint: Path, colours: Path, tmp_path: Path) -> None:
    videos = [colours / "red" / "red0.mp4", colours / "blue" / "blue1.mp4"]
    folder = tmp_path / "new" / "folder"
    status, output, errors = uniformerv2(
        *("timeline", checkpoint, *videos, tmp_path / "absent.mp4"),
        *("-o", folder, "--window-seconds", 0.4, "--stride-seconds", 0.2, "--top-k", 2),
    )
    assert status == 2
    assert f"\nerror: {tmp_path / 'absent.mp4'}" in errors
    assert output.splitlines()[0] == (
        f"{videos[0]}: 5 windows, written to {folder / 'red0.csv'} and {folder / 'red0.svg'}"
    )
    assert sorted(path.name for path in folder.iterdir()) == ["blue1.csv", "blue1.svg", "red0.csv", "red0.svg"]
    with (folder / "red0.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    timeline = Predictor(checkpoint).timeline(videos[0], window_seconds=0.4, stride_seconds=0.2)
    for row, moment in zip(rows, timeline.moments(top_k=2), strict=True):
        assert (float(row["start"]), float(row["end"])) == pytest.approx((moment.start, moment.end))
        assert (row["label1"], row["label2"]) == moment.labels
        assert (float(row["score1"]), float(row["score2"])) == pytest.approx(moment.scores, abs=1e-6)


def test_a_timeline_as_json(uniformerv2: Run, checkpoint: Path, video: Path, tmp_path: Path) -> None:
    status, output, _ = uniformerv2("timeline", checkpoint, video, "-o", tmp_path, "--json", "--top-k", 1)
    assert status == 0
    [line] = [json.loads(line) for line in output.splitlines()]  # shorter than the window of two seconds
    assert (line["video"], line["start"], line["end"]) == (str(video), 0, pytest.approx(1.2))
    assert (len(line["labels"]), len(line["scores"])) == (1, 1)

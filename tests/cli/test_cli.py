from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import wave
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from uniformerv2 import cli
from uniformerv2.data.sources import read_annotations
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.predict import Predictor
from uniformerv2.video.views import Views
from uniformerv2.weights import load_model, save_model
from uniformerv2.weights.labels import class_list

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def tiny(image_model: Path) -> list[object]:
    """Options of a run of a few seconds."""
    return ["--arm", image_model, "--size", 32, "--num-frames", 4, "--batch-size", 4, "--workers", 0, "--lr", 2e-3]


@pytest.fixture(scope="module")
def checkpoint(colours: Path, tiny: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    arguments = ["train", colours, "--output", folder, *tiny, "--epochs", 5, "--warmup-epochs", 1]
    assert cli.main([str(argument) for argument in arguments]) == 0
    return folder / "last.safetensors"


@pytest.fixture(scope="module")
def red(colours: Path) -> Path:
    return colours / "red" / "red0.mp4"


def assert_one_line(errors: str, *parts: object) -> None:
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1, errors
    for part in parts:
        assert str(part) in errors


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


# --- what works


def test_train_prints_the_recipe_a_line_per_epoch_and_the_result(
    uniformerv2: Run, colours: Path, tiny: list[object], tmp_path: Path
) -> None:
    status, output, errors = uniformerv2(
        "train", colours, "--output", tmp_path / "run", *tiny, "--epochs", 2, "--warmup-epochs", 0.5, "--no-flip"
    )
    assert (status, errors) == (0, "")
    assert "12 videos of 3 classes to learn from, 3 held out" in output
    assert "epochs 2, batch_size 4, lr 0.002" in output
    assert [line[:9] for line in output.splitlines() if line.startswith("epoch ")] == ["epoch 1/2", "epoch 2/2"]
    assert "of 3 held-out videos right" in output.splitlines()[-1]
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert recipe["augmentation"]["flip"] == 0.0
    assert recipe["optimization"]["warmup_epochs"] == 0.5
    assert (recipe["clip"]["num_frames"], recipe["clip"]["size"]) == (4, 32)


def test_flags_reach_the_recipe(uniformerv2: Run, colours: Path, tiny: list[object], tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text("red3.mp4\nblue0.mp4\n")
    status, _, errors = uniformerv2(
        *("train", colours, "--output", tmp_path / "run", *tiny, "--epochs", 1, "--warmup-epochs", 0),
        *("--holdout-list", tmp_path / "held.txt", "--seed", 7, "--layout", "scene", "--global-after", 0, 2),
        *("--local-blocks", "attention", "--temporal-downsample", "True", "--precision", "fp32"),
    )
    assert status == 0, errors
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert recipe["model"]["local_blocks"] == "attention"
    assert recipe["model"]["global_after"] == [0, 2]
    assert recipe["optimization"]["seed"] == 7
    assert {row.path.name for row in read_annotations(tmp_path / "run" / "held_out.csv")} == {"red3.mp4", "blue0.mp4"}
    with safe_open(tmp_path / "run" / "last.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    assert (config["local_blocks"], config["temporal_downsample"], config["global_after"]) == (
        "attention",
        True,
        [0, 2],
    )


def test_what_is_asked_before_the_long_run_touches_no_folder(
    uniformerv2: Run, colours: Path, tiny: list[object], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    start = ("train", colours, "--output", output, *tiny)
    status, tried, _ = uniformerv2(*start, "--dry-run")
    assert status == 0
    assert "everything works" in tried
    assert "GiB of memory" in tried
    status, learned, _ = uniformerv2(*start, "--overfit-batch")
    assert (status, "the batch is learned" in learned) == (0, True)
    status, learned, _ = uniformerv2(*start, "--overfit-batch", "--lr", 1e-9, "--start-lr", 0, "--end-lr", 0)
    assert (status, "the batch is learned" in learned) == (2, False)
    assert not output.exists()


def test_evaluate_prints_a_table_and_saves_json_beside_the_checkpoint(uniformerv2: Run, checkpoint: Path) -> None:
    held_out = checkpoint.with_name("held_out.csv")
    status, output, _ = uniformerv2("evaluate", checkpoint, held_out, "--clips", 2, "--crops", 3, "--workers", 0)
    assert status == 0
    saved = checkpoint.with_name("last.held_out.2x3.json")
    result = json.loads(saved.read_text())
    assert (result["evaluated"], result["views"]["clips"], result["views"]["crops"], result["skipped"]) == (3, 2, 3, [])
    assert f"top-1 {result['top1']:.1%}" in output
    assert all(name in output for name in ("blue", "green", "red", str(saved)))


def test_evaluate_writes_where_it_is_told_and_names_what_it_skipped(
    uniformerv2: Run, checkpoint: Path, red: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.mp4").write_text("no video")
    manifest = tmp_path / "some.csv"
    manifest.write_text(f"path,label,split\n{red},red,test\nbroken.mp4,red,test\nbroken.mp4,blue,train\n")
    status, output, _ = uniformerv2(
        "evaluate", checkpoint, manifest, "--output", tmp_path / "result.json", "--workers", 0
    )
    assert status == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["evaluated"] == 1
    assert [one["path"] for one in result["skipped"]] == [str(tmp_path / "broken.mp4")]
    assert "skipped 1" in output
    assert "broken.mp4" in output


def test_predict_ranks_the_classes(uniformerv2: Run, checkpoint: Path, red: Path) -> None:
    status, output, errors = uniformerv2("predict", checkpoint, red, "--top-k", 2)
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0] == str(red)
    assert lines[1].endswith("%  red")
    assert len(lines) == 3


def test_predict_json_is_one_object_a_line_and_nothing_else(
    uniformerv2: Run, checkpoint: Path, colours: Path, red: Path, tmp_path: Path
) -> None:
    blue = colours / "blue" / "blue1.mp4"
    status, output, errors = uniformerv2(
        "predict", checkpoint, red, tmp_path / "absent.mp4", blue, "--json", "--clips", 2, "--crops", 3
    )
    assert status == 2
    predictor = Predictor(checkpoint, views=Views(2, 3))
    for line, video in zip(output.splitlines(), (red, blue), strict=True):
        prediction = predictor.predict(video)
        assert json.loads(line) == {
            "video": str(video),
            "labels": list(prediction.labels),
            "scores": list(prediction.scores),
        }
    assert "absent.mp4" in errors
    assert "absent.mp4" not in output


def test_predict_goes_on_past_bad_videos_and_says_so_at_the_end(
    uniformerv2: Run, checkpoint: Path, red: Path, tmp_path: Path
) -> None:
    absent, broken = tmp_path / "absent.mp4", tmp_path / "broken.mp4"
    broken.write_text("no video")
    status, output, errors = uniformerv2("predict", checkpoint, absent, red, broken, red)
    assert status == 2
    assert output.count(str(red)) == 2
    lines = errors.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    assert [str(absent) in lines[0], str(broken) in lines[1], "2 of 4 videos" in lines[2]] == [True] * 3


def test_predict_puts_videos_together(uniformerv2: Run, checkpoint: Path, colours: Path) -> None:
    videos = sorted(colours.rglob("*0.mp4"))
    one_by_one = uniformerv2("predict", checkpoint, *videos)
    assert uniformerv2("predict", checkpoint, *videos, "--batch-size", 2) == one_by_one
    assert [line for line in one_by_one[1].splitlines() if line[0] != " "] == [str(video) for video in videos]
    status, output, errors = uniformerv2("predict", checkpoint, *videos, "--batch-size", 0)
    assert (status, output) == (2, "")
    assert_one_line(errors, "batch")


KINETICS = {"blue": "archery", "green": "bowling", "red": "yoga"}


def kinetics_checkpoint(checkpoint: Path, path: Path, *, rows: tuple[str, ...], labels: tuple[str, ...]) -> Path:
    """The checkpoint of three colours with names of Kinetics for them: their rows in one order, labels in another."""
    model = load_model(checkpoint)
    head = torch.nn.Linear(model.config.width, len(rows))
    with torch.no_grad():
        places = [rows.index(KINETICS[label]) for label in model.labels]
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.constant_(head.bias, -100)
        head.weight[places], head.bias[places] = model.head.linear.weight, model.head.linear.bias
    model.head.linear = head
    model.config, model.labels = replace(model.config, num_classes=len(rows)), labels
    save_model(model, path)
    return path


def kinetics_manifest(colours: Path, path: Path) -> Path:
    rows = [f"{row.path},{KINETICS[row.label]}" for row in read_annotations(colours)]
    path.write_text("\n".join(["path,label", *rows]))
    return path


def test_evaluate_warns_of_labels_in_another_order(
    uniformerv2: Run, checkpoint: Path, colours: Path, tmp_path: Path
) -> None:
    official, mmaction2 = class_list("kinetics400", order="official"), class_list("kinetics400", order="mmaction2")
    model = kinetics_checkpoint(checkpoint, tmp_path / "model.safetensors", rows=official, labels=mmaction2)
    manifest = kinetics_manifest(colours, tmp_path / "videos.csv")
    status, _, errors = uniformerv2("evaluate", model, manifest, "--clips", 1, "--crops", 1, "--workers", 0)
    assert status == 0
    assert errors.startswith("warning: top-1 0.0% is what guessing gives with 400 classes")
    assert "as the official kinetics400 order top-1 would be 100.0%" in errors
    assert errors.count("\n") == 1
    saved = json.loads((tmp_path / "model.videos.1x1.json").read_text())
    assert saved["warning"] in errors


def test_head_takes_a_part_of_kinetics_710(
    uniformerv2: Run, checkpoint: Path, colours: Path, red: Path, tmp_path: Path
) -> None:
    labels = class_list("kinetics710", order="mmaction2")
    model = kinetics_checkpoint(checkpoint, tmp_path / "model.safetensors", rows=labels, labels=labels)
    manifest = kinetics_manifest(colours, tmp_path / "videos.csv")
    status, _, errors = uniformerv2(
        "evaluate", model, manifest, "--clips", 1, "--crops", 1, "--workers", 0, "--head", "k600"
    )
    assert (status, errors) == (0, "")
    result = json.loads((tmp_path / "model.k600.videos.1x1.json").read_text())
    assert (len(result["classes"]), result["top1"]) == (600, 1.0)
    status, output, errors = uniformerv2("predict", model, red, "--head", "k400", "--json", "--top-k", 400)
    assert (status, errors) == (0, "")
    ranked = json.loads(output)["labels"]
    assert ranked[0] == "yoga"
    assert set(ranked) == set(class_list("kinetics400", order="mmaction2"))


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_only_a_head_of_710_has_parts(
    uniformerv2: Run, checkpoint: Path, colours: Path, red: Path, tmp_path: Path, command: str
) -> None:
    arguments = {"predict": [red], "evaluate": [colours, "--output", tmp_path / "result.json"]}[command]
    status, output, errors = uniformerv2(command, checkpoint, *arguments, "--head", "k400")
    assert (status, output) == (2, "")
    assert_one_line(errors, "k400", "blue, green, red")
    assert not (tmp_path / "result.json").exists()


def test_what_is_not_certain_of_the_labels_is_said_once(
    uniformerv2: Run, checkpoint: Path, red: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Path) -> UniFormerV2:
        model = load_model(path)
        model.label_note = "the order is inferred"
        return model

    monkeypatch.setattr("uniformerv2.weights.loading.load_model", load)
    assert uniformerv2("predict", checkpoint, red, red)[2] == "note: the order is inferred\n"
    output = tmp_path / "result.json"
    held_out = checkpoint.with_name("held_out.csv")
    errors = uniformerv2("evaluate", checkpoint, held_out, "--workers", 0, "--output", output)[2]
    assert errors == "note: the order is inferred\n"


def test_info_shows_what_the_checkpoint_carries(uniformerv2: Run, checkpoint: Path) -> None:
    status, output, _ = uniformerv2("info", checkpoint)
    assert status == 0
    for part in ("num_frames", "(32, 32)", "blue", "green", "red", "attention+mlp", "trained on colours"):
        assert part in output


def test_resume_repeats_the_options_and_continues(
    uniformerv2: Run, checkpoint: Path, colours: Path, tiny: list[object]
) -> None:
    arguments = ["train", colours, "--output", checkpoint.parent, *tiny, "--warmup-epochs", 1, "--resume"]
    status, output, _ = uniformerv2(*arguments, "--epochs", 5)
    assert status == 0
    assert "of 3 held-out videos right" in output
    before = tree(checkpoint.parent)
    status, _, errors = uniformerv2(*arguments, "--epochs", 6)
    assert status == 2
    assert_one_line(errors, checkpoint.parent, "epochs 5 is now 6")
    assert tree(checkpoint.parent) == before


# --- what bad input gets


def make_empty(path: Path, red: Path) -> None:
    path.write_bytes(b"")


def make_truncated(path: Path, red: Path) -> None:
    path.write_bytes(red.read_bytes()[:200])


def make_text(path: Path, red: Path) -> None:
    path.write_text("this is a text\n" * 100)


def make_audio(path: Path, red: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))


def make_nothing(path: Path, red: Path) -> None:
    pass


def make_empty_folder(path: Path, red: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [make_nothing, make_empty, make_truncated, make_text, make_audio, make_empty_folder])
def test_what_is_no_video(uniformerv2: Run, checkpoint: Path, red: Path, tmp_path: Path, make: Any) -> None:
    video = tmp_path / "bad.mp4"
    make(video, red)
    before = tree(tmp_path)
    status, output, errors = uniformerv2("predict", checkpoint, video)
    assert (status, output) == (2, "")
    assert_one_line(errors, video)
    assert tree(tmp_path) == before


def test_a_video_of_one_pixel(uniformerv2: Run, checkpoint: Path, tmp_path: Path) -> None:
    video = tmp_path / "pixel.avi"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("rawvideo", rate=10)
        stream.width = stream.height = 1
        stream.pix_fmt = "bgr24"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame(1, 1, "bgr24")))
        container.mux(stream.encode())
    status, output, errors = uniformerv2("predict", checkpoint, video)
    assert (status, output) == (2, "")
    assert_one_line(errors, video, "1x1")


def test_an_interval_of_no_length(uniformerv2: Run, checkpoint: Path, red: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "videos.csv"
    manifest.write_text(f"path,label,start,end\n{red},red,0.5,0.5\n")
    status, _, errors = uniformerv2("evaluate", checkpoint, manifest)
    assert status == 2
    assert_one_line(errors, manifest, "line 2", "0.5")


def test_a_result_that_has_no_place_to_go(uniformerv2: Run, checkpoint: Path, colours: Path, tmp_path: Path) -> None:
    status, output, errors = uniformerv2("evaluate", checkpoint, colours, "--output", tmp_path / "absent" / "a.json")
    assert (status, output) == (2, "")
    assert_one_line(errors, tmp_path / "absent")


def test_data_that_cannot_be_learned(uniformerv2: Run, colours: Path, tiny: list[object], tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    (one / "red").symlink_to(colours / "red")
    for data in (one, tmp_path / "absent", tmp_path):
        status, _, errors = uniformerv2("train", data, "--output", tmp_path / "run", *tiny)
        assert status == 2
        assert_one_line(errors, data)
        assert not (tmp_path / "run").exists()


def test_an_existing_run_is_not_overwritten_by_accident(
    uniformerv2: Run, checkpoint: Path, colours: Path, tiny: list[object]
) -> None:
    before = tree(checkpoint.parent)
    status, _, errors = uniformerv2("train", colours, "--output", checkpoint.parent, *tiny)
    assert status == 2
    assert_one_line(errors, checkpoint.parent, "--resume", "--overwrite")
    assert tree(checkpoint.parent) == before


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


KINDS = ("absent", "empty", "text", "folder", "image model", "other", "pickle", "torch pickle")


@pytest.mark.parametrize("command", ["predict", "evaluate", "info", "train"])
@pytest.mark.parametrize(
    "kind", ["absent", "empty", "text", "folder", "image model", "other", "pickle", "torch pickle"]
)
def test_checkpoints_that_are_none_or_do_not_fit(
    uniformerv2: Run,
    checkpoint: Path,
    image_model: Path,
    colours: Path,
    tiny: list[object],
    red: Path,
    tmp_path: Path,
    command: str,
    kind: str,
) -> None:
    path, target = tmp_path / "model.safetensors", tmp_path / "owned"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is no checkpoint")
    elif kind == "folder":
        path.mkdir()
    elif kind == "image model":  # a fine file, but of another architecture
        path.write_bytes((image_model if command != "train" else checkpoint).read_bytes())
    elif kind == "other":  # says one architecture and holds the tensors of another
        with safe_open(checkpoint if command != "train" else image_model, "pt") as file:
            metadata = file.metadata()
        state = load_file(checkpoint if command != "train" else image_model)
        name = next(name for name in state if "blocks.1" in name)
        save_file({key: tensor for key, tensor in state.items() if key != name}, path, metadata)
        if command == "info":  # reads no weights, so it cannot tell
            return
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Payload(target)))
    elif kind == "torch pickle":
        torch.save({"weight": Payload(target)}, path)

    arguments = {
        "predict": [path, red],
        "evaluate": [path, colours, "--output", tmp_path / "result.json"],
        "info": [path],
        "train": [colours, "--output", tmp_path / "run", *tiny[2:], "--arm", path],
    }[command]
    status, output, errors = uniformerv2(command, *arguments)
    assert (status, output) == (2, "")
    assert_one_line(errors, path)
    assert not target.exists()
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--epochs", "0"], "epochs"),
        (["--holdout", "1.5"], "holdout"),
        (["--size", "33"], "33"),
        (["--device", "nonsense"], "nonsense"),
        (["--resume"], "recipe.json"),
        (["--resume", "--overwrite"], "contradict"),
        (["--model", "B/16"], "--arm"),
        (["--global-after", "7"], "7"),
        (["--crop-area", "0.9", "0.1"], "crop_area"),
        (["--num-ops", "-1"], "num_ops"),
        (["--holdout-list", "absent.txt"], "absent.txt"),
    ],
)
def test_options_that_make_no_sense(
    uniformerv2: Run, colours: Path, tiny: list[object], tmp_path: Path, arguments: list[str], part: str
) -> None:
    status, output, errors = uniformerv2("train", colours, "--output", tmp_path / "run", *tiny, *arguments)
    assert (status, output) == (2, "")
    assert_one_line(errors, part)
    assert not (tmp_path / "run").exists()


def test_predict_needs_a_video_and_a_class_to_name(uniformerv2: Run, checkpoint: Path, red: Path) -> None:
    for arguments, part in (([checkpoint], "no videos given"), ([checkpoint, red, "--top-k", 0], "top_k")):
        status, output, errors = uniformerv2("predict", *arguments)
        assert (status, output) == (2, "")
        assert_one_line(errors, part)


def test_wrong_usage_ends_with_status_2(uniformerv2: Run) -> None:
    for arguments in ([], ["nonsense"], ["train"], ["train", "data", "--output", "x", "--nonsense", "1"]):
        status, output, errors = uniformerv2(*arguments)
        assert (status, output) == (2, "")
        assert errors


def test_ctrl_c_ends_with_status_130(
    uniformerv2: Run, checkpoint: Path, red: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "predict_all", interrupt)
    status, output, errors = uniformerv2("predict", checkpoint, red)
    assert (status, output) == (130, "")
    assert_one_line(errors, "interrupted")


def test_programming_errors_keep_their_traceback(
    uniformerv2: Run, checkpoint: Path, red: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Predictor, "predict_all", fail)
    with pytest.raises(ZeroDivisionError):
        uniformerv2("predict", checkpoint, red)


# --- as a program


def modules_of(*arguments: str) -> set[str]:
    """Modules that a command has imported when it ends."""
    code = (
        "import sys\nfrom uniformerv2.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print('\\n'.join(['MODULES', *sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(result.stdout.partition("MODULES\n")[2].split())


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["predict"], ["demo"], ["info"]])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    modules = modules_of(*command, "--help")
    assert "tyro" in modules
    assert not modules & {"torch", "av", "numpy", "safetensors", "huggingface_hub"}


def test_predict_imports_no_compiler_and_no_progress_bar(checkpoint: Path, red: Path) -> None:
    modules = modules_of("predict", str(checkpoint), str(red))
    assert "torch" in modules
    assert not modules & {"torch._dynamo", "torch._inductor", "sympy", "rich.progress"}


def test_the_package_is_a_program(checkpoint: Path, red: Path) -> None:
    command = [sys.executable, "-m", "uniformerv2", "predict", str(checkpoint)]
    good = subprocess.run([*command, str(red)], capture_output=True, text=True, check=False)
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.splitlines()[1].endswith("red")
    bad = subprocess.run([*command, str(red) + "x"], capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert_one_line(bad.stderr, f"{red}x")

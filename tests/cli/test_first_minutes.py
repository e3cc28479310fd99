"""What a newcomer types first."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from helpers import Run, assert_refused, before_call, logged, tiny_recipe, train
from uniformerv2 import __version__
from uniformerv2.tasks.classification.task import Classification
from uniformerv2.train.recipes import RECIPES
from uniformerv2.weights.image_files import read_image_source


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch, image_model: Path) -> None:
    """The image transformer of the recipes is the tiny one."""
    monkeypatch.setattr(
        "uniformerv2.weights.loading.read_image_source",
        lambda source, *options, **others: read_image_source(image_model, *options, **others),
    )


def saved(run: str) -> dict[str, dict[str, object]]:
    return json.loads(Path(run, "recipe.json").read_text())


@pytest.mark.usefixtures("no_download")
def test_train_needs_the_videos_alone(uniformerv2: Run, colours: Path) -> None:
    name = f"{colours.name}-run"
    small = ["--size", 32, "--num-frames", 2, "--workers", 0, "--epochs", 1]  # for the time that it takes
    for run in (name, f"{name}2"):
        status, output, errors = uniformerv2("train", colours, *small)
        assert status == 0, errors
        assert "recipe own-small-vit, for 15 videos" in errors
        assert output.splitlines()[-1].startswith(f"{run}/last.safetensors: ")
        assert saved(run)["model"]["arm"] == RECIPES["own-small-vit"].recipe.model.arm
    assert saved(name)["optimization"]["warmup_epochs"] == 0.1  # two of twenty epochs


@pytest.mark.parametrize(("limit", "size"), [(15, "medium"), (16, "small")])
@pytest.mark.usefixtures("no_download")
def test_the_number_of_videos_decides_the_recipe(
    uniformerv2: Run, colours: Path, monkeypatch: pytest.MonkeyPatch, limit: int, size: str
) -> None:
    monkeypatch.setattr("uniformerv2.train.recipes.own.SIZES", (("small", limit), ("medium", 100_000)))
    options = ["--size", 32, "--num-frames", 2, "--workers", 0, "--batch-size", 8, "--epochs", 1]
    for given, name in (([], f"own-{size}-vit"), (["--recipe", "own-small-vit"], "own-small-vit")):
        status, _, errors = uniformerv2("train", colours, *options, *given, "-o", name, "--overwrite")
        assert status == 0, errors
        wanted = RECIPES[name].recipe.lasting(1)
        assert saved(name)["augmentation"]["num_ops"] == wanted.augmentation.num_ops
        assert saved(name)["optimization"]["batch_size"] == 8  # as given, although it is that of the small recipe


def test_no_folder_is_replaced_by_a_guess(uniformerv2: Run, colours: Path, tiny: list[object]) -> None:
    assert_refused(uniformerv2("train", colours, *tiny, "--overwrite"), "give --output")


def test_rehearsals_need_the_videos_alone(uniformerv2: Run, colours: Path, no_download: None) -> None:
    small = ["--size", 32, "--num-frames", 2, "--workers", 0]
    status, output, errors = uniformerv2("rehearse", "dry-run", colours, *small)
    assert (status, "everything works" in output) == (0, True), errors
    assert "recipe own-small-vit, for 15 videos" in errors


def test_the_version(uniformerv2: Run) -> None:
    assert uniformerv2("--version") == (0, f"uniformerv2 {__version__}\n", "")
    assert "--version" in uniformerv2("--help")[1]


def test_without_a_network_one_line_says_what_to_do(
    uniformerv2: Run, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # listens to no one
        for proxy in ("", f"http://127.0.0.1:{nobody.getsockname()[1]}"):
            monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
            monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
            monkeypatch.setenv("http_proxy", proxy)
            status, output, errors = uniformerv2("train", colours)
            chosen, error = errors.splitlines()
            assert (status, output, chosen.partition(" ")[0]) == (2, "", "note:")
            assert error.startswith("error: timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k: ")
            assert "check the network" in error
            assert "--arm FILE" in error
    assert not list(tmp_path.glob("*-run"))


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C does what it does in a terminal; in a process that a shell started in the background it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_after_the_step_and_says_how_to_go_on(
    uniformerv2: Run, colours: Path, tiny: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", colours, *tiny, "--epochs", 3, "--head-dropout", 0.1]
    assert uniformerv2(*command, "-o", "whole")[0] == 0
    with monkeypatch.context() as patch:
        before_call(patch, Classification, "loss", 5, lambda: os.kill(os.getpid(), signal.SIGINT))
        status, _, errors = uniformerv2(*command, "-o", "my run")
    assert status == 130
    *_, stopped, error = errors.splitlines()
    assert stopped == "stopped by Ctrl-C after step 5 of 9; it can go on with --resume"
    assert error.startswith("error: interrupted; go on with ")
    assert error.endswith("uniformerv2 train --resume --output 'my run'")
    assert len(logged(Path("my run"), "step")) == 5
    assert uniformerv2("train", "--resume", "--output", "my run", "--workers", 0)[0] == 0
    assert logged(Path("my run")) == logged(Path("whole"))


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_in_python_has_no_frames_of_the_loop(
    colours: Path, image_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    recipe = tiny_recipe(image_model, epochs=2)
    with monkeypatch.context() as patch:
        before_call(patch, Classification, "loss", 2, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt, match="resume=True") as interrupted:
            train(colours, recipe, "run")
    assert [frame.name for frame in interrupted.traceback][1:] == ["train_classifier"]
    assert interrupted.value.__suppress_context__
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(train(colours, recipe, "run", resume=True).history) == 2


def test_a_folder_that_cannot_be_written_to_is_told_the_option(
    uniformerv2: Run, colours: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs the tests may write everywhere: what the system says is replaced."""
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != checkpoint.parent and access(path, mode))
    assert_refused(uniformerv2("evaluate", checkpoint, colours), checkpoint.parent, "--output")
    assert uniformerv2("evaluate", checkpoint, colours, "--output", "result.json", "--workers", 0)[0] == 0


def test_weights_and_biases_follows_its_own_variables(
    uniformerv2: Run, colours: Path, tiny: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[str, str]] = []

    def init(*, project: str, name: str, **options: object) -> SimpleNamespace:
        begun.append((project, name))
        return SimpleNamespace(log=lambda numbers, step: None, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Error=RuntimeError))
    command = ["train", colours, *tiny, "--epochs", 1, "--loggers", "wandb", "-o", "run", "--overwrite"]
    assert uniformerv2(*command)[0] == 0
    monkeypatch.setenv("WANDB_PROJECT", "gestures")
    monkeypatch.setenv("WANDB_NAME", "first try")
    assert uniformerv2(*command)[0] == 0
    assert begun == [("uniformerv2", "run"), ("gestures", "first try")]


def test_three_lines_open_a_run(uniformerv2: Run, colours: Path, tiny: list[object]) -> None:
    command = ["train", colours, *tiny, "--epochs", 1, "--precision", "fp32"]
    short, whole = (uniformerv2(*command, "-o", run, *more)[2] for run, more in (("a", []), ("b", ["--verbose"])))
    data, model, training = short.splitlines()
    assert data == "data: 12 training videos of 3 classes, 3 held out"
    assert model.startswith("model: ")
    assert training == (
        "training: 1 epochs of 3 steps, 4 clips a step of 4 frames, 32x32 pixels; learning rate 0.002, fp32; "
        "run folder a"
    )
    assert "weight_decay 0.05" in whole
    assert whole.splitlines()[-3:-1] == [data, model]


def test_a_run_on_few_videos_ends_with_a_question(uniformerv2: Run, colours: Path, tiny: list[object]) -> None:
    """Whether order counts, which held-out videos can tell unless they are few."""
    command = ["train", colours, *tiny, "--epochs", 1, "--batch-size", 2, "--holdout", 0.7]
    asked = "does the order of frames count here? uniformerv2 rehearse order a a/held_out.csv tells"
    assert asked in uniformerv2(*command, "-o", "a")[2]
    assert "order" not in uniformerv2(*command, "-o", "b", "--layout", "scene")[2]
    assert "order" not in uniformerv2(*command, "-o", "c", "--holdout", 0.2)[2]
    assert "order" not in uniformerv2(*command, "-o", "d", "--arm", "None", "--checkpoint", "a")[2]


def test_without_a_terminal_progress_comes_as_lines(
    uniformerv2: Run, colours: Path, tiny: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", colours, *tiny, "--epochs", 2, "--layout", "scene", "--frozen-backbone", "--fixed-views", 1]
    command += ["--cache-features", "fp32"]
    monkeypatch.setattr("uniformerv2.progress.LINE_EVERY_SECONDS", 0.0)
    errors = uniformerv2(*command, "-o", "often")[2].splitlines()
    assert [line.split("  ")[:2] for line in errors if line.startswith("epoch ")] == [
        [f"epoch {epoch}/2", f"step {step}"] for epoch, step in ((1, 1), (1, 2), (1, 3), (2, 4), (2, 5), (2, 6))
    ]
    assert all(line.endswith(" left") for line in errors if line.startswith("epoch "))
    assert "encoding: 1 of 3, 33%" in errors
    monkeypatch.setattr("uniformerv2.progress.LINE_EVERY_SECONDS", 3600.0)
    assert not [line for line in uniformerv2(*command, "-o", "seldom")[2].splitlines() if line.startswith("epoch ")]

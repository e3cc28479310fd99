"""A start is trained on drawn motions before the videos. What that gains is measured by trainings, not here."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from filelock import FileLock
from torch import Tensor

from helpers import (
    Run,
    assert_refused,
    before_call,
    interrupt,
    logged,
    tiny_recipe,
    train,
)
from uniformerv2 import arm, load_model, save_model
from uniformerv2.data.sources import read_annotations
from uniformerv2.demo.motions import MOTIONS
from uniformerv2.errors import RecipeError
from uniformerv2.tasks import motion_first
from uniformerv2.tasks.classification.task import Classification
from uniformerv2.tasks.motion_first import draw_motions, motion_recipe
from uniformerv2.tasks.rehearsal import dry_run, overfit_batch
from uniformerv2.tasks.start import build_model
from uniformerv2.train.engine import Trainer
from uniformerv2.train.recipe import Recipe
from uniformerv2.train.run_folder import RunFolder
from uniformerv2.video.views import Views

LABELS = ("blue", "green", "red")
State = dict[str, Tensor]
Starts = list[tuple[Path, State]]


def use(cache: Path, patch: pytest.MonkeyPatch) -> None:
    """Draw few clips, train on them shortly, keep both in this folder."""
    for name, value in {"TRAIN_CLIPS": 1, "HELD_OUT_CLIPS": 1, "EPOCHS": 2}.items():
        patch.setattr(motion_first, name, value)
    patch.setattr(motion_first, "cache_file", lambda: cache / "attention.json")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that has the drawings, and what no start has learned."""
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("cache")
        use(cache, patch)
        draw_motions((32, 32))
    return cache


@pytest.fixture
def cache(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may fill."""
    use(tmp_path / "cache", monkeypatch)
    shutil.copytree(drawn, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Starts:
    return noted_starts(monkeypatch)


def noted_starts(patch: pytest.MonkeyPatch) -> Starts:
    """Folder and weights of every training from now on, as they are before its first step."""
    found: Starts = []
    fit = Trainer.fit

    def noted(trainer: Trainer) -> None:
        found.append((trainer.run.path, copied(trainer.model)))
        fit(trainer)

    patch.setattr(Trainer, "fit", noted)
    return found


@pytest.fixture(scope="module")
def recipe(image_model: Path) -> Recipe:
    return tiny_recipe(image_model, motion_first=True, epochs=2, batch_size=6, head_dropout=0.1, drop_path=0.2)


class Whole(NamedTuple):
    """A run that nothing has broken off."""

    run: Path
    cache: Path
    starts: Starts
    output: str
    errors: str


@pytest.fixture(scope="module")
def whole(colours: Path, recipe: Recipe, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder, output, errors = tmp_path_factory.mktemp("whole"), io.StringIO(), io.StringIO()
    shutil.copytree(drawn, folder / "cache")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
        use(folder / "cache", patch)
        starts = noted_starts(patch)
        train(colours, recipe, folder / "run", progress=True)
    return Whole(folder / "run", folder / "cache", starts, output.getvalue(), errors.getvalue())


def copied(model: torch.nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def start_of(recipe: Recipe, labels: tuple[str, ...] = LABELS) -> State:
    torch.manual_seed(recipe.optimization.seed)
    return copied(build_model(recipe, labels))


def equal(one: State, other: State, only: Callable[[str], bool] = lambda name: True) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one if only(name))


def is_head(name: str) -> bool:
    return name.startswith("head.")


def is_no_head(name: str) -> bool:
    return not is_head(name)


def kept(run: Path) -> dict[str, Any]:
    return json.loads((run / "motion_first.json").read_text())


def learned(run: Path) -> State:
    """What its start has learned from motions."""
    return load_model(Path(kept(run)["kept"]) / "last.safetensors").state_dict()


def test_a_run_starts_with_what_its_start_has_learned_from_motions(whole: Whole, recipe: Recipe) -> None:
    (first, before), (second, after) = whole.starts
    assert (first, second) == (whole.run / "motions", whole.run)
    assert equal(before, start_of(recipe, tuple(sorted(MOTIONS))))
    plain = start_of(recipe)
    assert equal(after, plain, is_head)
    assert equal(after, {name: after[name] if is_head(name) else value for name, value in learned(whole.run).items()})
    for part in ("local1", "global_blocks", "blocks.0.attention"):
        changed = {name for name in plain if part in name and not torch.equal(plain[name], after[name])}
        assert changed, f"nothing of {part} has learned"


def test_what_happened_is_said_and_recorded(whole: Whole) -> None:
    assert kept(whole.run)["evaluated"] == 12
    assert json.loads((whole.run / "recipe.json").read_text())["model"]["motion_first"] is True
    assert not (whole.run / "motions").exists()
    assert [line.split()[1] for line in whole.output.splitlines()] == ["1/2", "2/2"]
    said = f"motion first: {kept(whole.run)['correct']} of 12 held-out clips of drawn motions right"
    assert [line for line in whole.errors.splitlines() if line.startswith(said)]


def test_equal_starts_learn_once_whatever_their_videos_and_names(
    whole: Whole, colours: Path, recipe: Recipe, starts: Starts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(whole.cache, monkeypatch)
    copy = tmp_path / "copy.safetensors"
    shutil.copy(str(recipe.model.arm), copy)
    rows = [row for row in read_annotations(colours) if row.label != "red"]
    train(rows, recipe.vary(arm=str(copy), epochs=1), tmp_path / "run")
    ((path, after),) = starts
    assert path == tmp_path / "run"
    known = whole.starts[1][1]
    assert equal(after, {name: after[name] if is_head(name) else value for name, value in known.items()})
    assert kept(path) == kept(whole.run)


def test_what_a_start_learns_depends_on_all_that_its_training_depends_on(recipe: Recipe) -> None:
    def digest(**changes: Any) -> str:
        return motion_first._digest(motion_recipe(recipe.vary(**changes).resolved()))

    assert digest(epochs=7, mixup=0.5, ema=0.9, clips=3, evaluate_every=2) == digest()
    changes = [{"seed": 1}, {"lr": 1e-3}, {"size": 16}, {"num_frames": 8}, {"layout": "scene"}, {"drop_path": 0.0}]
    changes += [{"frozen_backbone": True}, {"batch_size": 1}, {"layer_decay": 0.9}, {"mean": (0.1, 0.2, 0.3)}]
    assert len({digest(**change) for change in [{}, *changes]}) == 1 + len(changes)


def test_a_run_that_is_broken_off_ends_as_if_it_had_not_been(
    whole: Whole,
    colours: Path,
    recipe: Recipe,
    cache: Path,
    starts: Starts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    for method, call in (("evaluate", 1), ("loss", 7)):  # of the motions; in the second epoch of the videos
        starts.clear()
        with monkeypatch.context() as patch:
            before_call(patch, Classification, method, call, interrupt)
            with pytest.raises(KeyboardInterrupt):
                train(colours, recipe, run, resume=run.exists())
    (_, motions), _ = starts
    assert not equal(motions, whole.starts[0][1], is_no_head)  # they went on
    shutil.rmtree(cache)  # a run that has a state needs it no longer
    train(colours, recipe, run, resume=True)
    assert len(starts) == 3
    assert logged(run) == logged(whole.run)
    ends = [load_model(folder / "last.safetensors").state_dict() for folder in (run, whole.run)]
    assert equal(*ends)


def test_damaged_weights_are_learned_again(
    whole: Whole, colours: Path, recipe: Recipe, starts: Starts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole.cache, tmp_path / "cache")
    use(tmp_path / "cache", monkeypatch)
    file = tmp_path / "cache" / "motions" / Path(kept(whole.run)["kept"]).name / "last.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    train(colours, recipe.vary(epochs=1), tmp_path / "run")
    assert len(starts) == 2
    assert equal(starts[1][1], whole.starts[1][1])


def test_frozen_parts_stay_frozen_and_their_cached_features_hold(
    colours: Path, recipe: Recipe, cache: Path, starts: Starts, tmp_path: Path
) -> None:
    frozen = recipe.vary(epochs=1, layout="scene", frozen_backbone=True, cache_features="fp32", fixed_views=1)
    train(colours, frozen, tmp_path / "run")
    plain, (_, after) = start_of(frozen), starts[1]
    assert equal(plain, after, lambda name: name.startswith("backbone."))
    assert not equal(plain, after, lambda name: name.startswith("global_blocks."))
    shutil.rmtree(tmp_path / "run" / "features")
    encoded = train(colours, frozen.vary(cache_features="none"), tmp_path / "encoded")
    losses = [[record["loss"] for record in logged(run, "step")] for run in (tmp_path / "run", encoded.last.parent)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_command_line_goes_on_from_a_video_model_with_a_new_head(
    uniformerv2: Run,
    colours: Path,
    image_model: Path,
    cache: Path,
    starts: Starts,
    tmp_path: Path,
) -> None:
    model = arm(image_model, num_classes=3, layout="temporal", labels=LABELS, num_frames=4, size=32)
    save_model(model, tmp_path / "video.safetensors")
    options = ["--checkpoint", tmp_path / "video.safetensors", "--motion-first", "--batch-size", 6, "--epochs", 1]
    run = tmp_path / "run"
    status, output, errors = uniformerv2("train", colours, *options, "--workers", 0, "-o", run)
    assert status == 0, errors
    assert output.splitlines()[-1].endswith("of 3 held-out videos right")
    assert "head: new, for 3 classes" in errors
    assert [path for path, _ in starts] == [run / "motions", run]
    assert not equal(starts[1][1], model.state_dict(), is_head)
    assert uniformerv2("train", "--resume", "-o", run, "--workers", 0)[0] == 0
    refused = uniformerv2("train", "--resume", "-o", run, "--no-motion-first", "--workers", 0)
    assert_refused(refused, "motion_first True is now False")


def test_a_run_of_the_time_before_this_goes_on(recipe: Recipe, tmp_path: Path) -> None:
    run, plain = RunFolder(tmp_path / "run"), recipe.vary(motion_first=False)
    fields = json.loads(plain.to_json())
    del fields["model"]["motion_first"]
    run.start({run.recipe: json.dumps(fields)}, resume=False)
    assert run.read_recipe() == plain
    run.start({run.recipe: plain.to_json()}, resume=True)
    with pytest.raises(RecipeError, match="motion_first False is now True"):
        run.start({run.recipe: recipe.to_json()}, resume=True)


def test_several_processes_learn_motions_together(
    together: Callable[..., list[Any]], colours: Path, recipe: Recipe, tmp_path: Path
) -> None:
    cache, run = tmp_path / "cache", tmp_path / "run"

    def work() -> tuple[list[Path], State]:
        patch = pytest.MonkeyPatch()
        use(cache, patch)
        starts = noted_starts(patch)
        train(colours, recipe.vary(epochs=1), run)
        (first, _), (second, after) = starts
        return [first, second], after

    (paths, one), (others, other) = together(2, work)
    assert paths == others == [run / "motions", run]
    assert equal(one, other)
    assert equal(one, {name: one[name] if is_head(name) else value for name, value in learned(run).items()})


def test_rehearsals_leave_the_motions_out_and_say_how_long_they_take(
    colours: Path, recipe: Recipe, cache: Path, starts: Starts
) -> None:
    result = dry_run(colours, recipe, workers=0)
    assert len(starts) == 1
    assert result.motion_seconds == pytest.approx(2 * 12 * result.step_seconds / 6)
    assert result.lines()[-1].endswith("for drawn motions, once for this start")
    overfit_batch(colours, recipe, workers=0, steps=1)
    assert len(list((cache / "motions").glob("*/"))) == 1
    assert dry_run(colours, recipe.vary(motion_first=False), workers=0).motion_seconds == 0


def test_motions_are_seen_as_they_are_drawn(recipe: Recipe) -> None:
    augmented = recipe.vary(
        **{"num_ops": 4, "erasing": 0.5, "mixup": 1.0, "repeats": 2, "fixed_views": 3, "flip_labels": "left,right"},
        **{"reverse_labels": "open,close"},
        **{"ema": 0.9, "sampling": "balanced", "early_stop": 2, "monitor": "loss", "warmup_epochs": 1.0, "lr": 4e-4},
        **{"batch_size": 12, "accumulate": 2, "lr_base_batch": 12, "clips": 4, "crops": 3, "num_frames": 16},
    )
    motions = motion_recipe(augmented.resolved())
    assert motions.augmentation == motion_first.AS_DRAWN
    assert motions.model == replace(augmented.model, motion_first=False, map_head=False)
    assert (motions.clip, motions.evaluation) == (replace(augmented.clip, num_frames=8), Views())
    optimization = motions.resolved().optimization
    assert (optimization.lr, optimization.batch_size, optimization.accumulate) == (4e-4, 16, 4)  # 6 clips fit at once
    assert motion_recipe(augmented.vary(batch_size=64).resolved()).optimization.accumulate == 1
    assert 0 < optimization.warmup_epochs < 1
    assert (optimization.ema, optimization.sampling, optimization.early_stop) == (0.0, "none", 0)


@pytest.mark.parametrize(
    ("size", "drawn"), [((32, 32), (64, 64)), ((224, 224), (96, 96)), ((128, 160), (96, 120)), ((64, 32), (128, 64))]
)
def test_what_is_drawn_has_the_shape_of_the_clip(
    size: tuple[int, int], drawn: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(tmp_path, monkeypatch)
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(motion_first, "write_dataset", lambda folder, **options: calls.append(options))
    for _ in range(2):  # once
        manifest = draw_motions(size)
    assert [call["size"] for call in calls] == [drawn]
    assert manifest.parent.is_dir()


def test_who_finds_another_process_at_work_takes_what_that_has_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(tmp_path, monkeypatch)
    drawn: list[Path] = []
    monkeypatch.setattr(motion_first, "write_dataset", lambda folder, **options: drawn.append(folder))
    folder = draw_motions((32, 32)).parent
    folder.rmdir()
    other = FileLock(f"{folder}.lock")
    other.acquire()

    def other_ends(line: str, **options: Any) -> None:
        assert line == f"motion first: waiting for the process that makes {folder}"
        folder.mkdir()
        other.release()

    monkeypatch.setattr(motion_first, "say", other_ends)
    assert draw_motions((32, 32)).parent == folder
    assert len(drawn) == 1


def test_drawings_that_a_killed_process_left_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(tmp_path, monkeypatch)

    def killed(folder: Path, **options: Any) -> None:
        (folder / "half.mp4").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(motion_first, "write_dataset", killed)
    with monkeypatch.context() as patch:
        patch.setattr("uniformerv2.atomic.shutil.rmtree", lambda *arguments, **options: None)
        with pytest.raises(KeyboardInterrupt):
            draw_motions((32, 32))
    assert len(list(tmp_path.rglob("half.mp4"))) == 1
    monkeypatch.setattr(motion_first, "write_dataset", lambda folder, **options: None)
    draw_motions((32, 32))
    assert not list(tmp_path.rglob("half.mp4"))


def test_what_cannot_be_is_refused_in_a_line(
    uniformerv2: Run, colours: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError, match="motion_first needs clips of several frames, got num_frames 1"):
        recipe.vary(num_frames=1)
    with pytest.raises(RecipeError, match="motion_first needs a new head: leave map_head out"):
        recipe.vary(checkpoint="video.safetensors", map_head=True)
    use(tmp_path / "file", monkeypatch)
    (tmp_path / "file").touch()
    command = ["train", colours, "--arm", recipe.model.arm, "--size", 32, "--num-frames", 4, "--motion-first"]
    ended = uniformerv2(*command, "--workers", 0, "-o", tmp_path / "run")
    assert ended[0] == 2
    assert (
        ended[2].splitlines()[-1].startswith(f"error: {tmp_path}/file/motions: drawn motions cannot be written there")
    )

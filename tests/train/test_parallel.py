"""Several processes train as one would: the same gradients, statistics, losses, and states for any number of them."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers import before_call
from uniformerv2 import load_model
from uniformerv2.distributed import Ranks, current_ranks, forward_passes
from uniformerv2.errors import ProcessError, RecipeError
from uniformerv2.model.config import ModelConfig
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.tasks.classification.task import Classification
from uniformerv2.tasks.classification.training import train_classifier
from uniformerv2.tasks.rehearsal import dry_run
from uniformerv2.train.engine import TERMINATED
from uniformerv2.train.log import read_metrics
from uniformerv2.train.parallel import SharedModel, SynchronizedBatchNorm, blocks, local_tensor, whole_tensor
from uniformerv2.train.recipe import ClipRecipe, ModelRecipe, Optimization, Recipe
from uniformerv2.train.run_folder import RunFolder
from uniformerv2.train.state import StateFolder
from uniformerv2.train.task import BatchLoss
from uniformerv2.video.augmentation import Augmentation

Together = Callable[..., list[Any]]
WAYS = [(2, "ddp"), (3, "ddp"), (2, "fsdp")]

train = partial(train_classifier, workers=0)


def small_model(depth: int = 3) -> UniFormerV2:
    """With local blocks, whose BatchNorm couples the clips of a batch, and recomputed activations."""
    torch.manual_seed(3)
    config = ModelConfig(
        width=24,
        depth=depth,
        heads=2,
        patch_size=8,
        image_size=(16, 16),
        local_blocks="attention+mlp",
        temporal_downsample=True,
        global_after=tuple(range(depth))[-2:],
        checkpoint_blocks=min(2, depth),
        num_classes=5,
    )
    model = UniFormerV2(config).train()
    for parameter in model.parameters():  # what is zero at the start would hide what is behind it
        nn.init.normal_(parameter, std=0.1)
    return model


def clips_and_labels(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(count, 3, 4, 16, 16, generator=generator), torch.randint(5, (count,), generator=generator)


def gradients_and_statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    gradients = {name: whole_tensor(one.grad) for name, one in model.named_parameters() if one.grad is not None}
    return gradients | {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}


def loss_share(called: nn.Module, clips: torch.Tensor, labels: torch.Tensor, count: int, world: int) -> torch.Tensor:
    """Whose mean over the processes is the mean over all clips."""
    return nn.functional.cross_entropy(called(clips), labels, reduction="sum") * world / count


@pytest.mark.parametrize(("world", "way"), WAYS)
@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 3, 2), (4, 0, 2)])
def test_gradients_and_statistics_are_those_of_one_process(
    together: Together, world: int, way: Any, sizes: tuple[int, ...]
) -> None:
    sizes = sizes[:world]
    clips, labels = clips_and_labels(sum(sizes))
    alone = small_model()
    loss_share(alone, clips, labels, sum(sizes), 1).backward()
    expected = gradients_and_statistics(alone)

    def work() -> dict[str, torch.Tensor]:
        rank = current_ranks().rank
        model = small_model()
        called = SharedModel(model, current_ranks(), parallel=way, precision="fp32").called
        own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        loss_share(called, clips[own], labels[own], sum(sizes), world).backward()
        return gradients_and_statistics(model)

    for found in together(world, work):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert (found[name] - tensor).abs().max() <= 1e-6 * max(1.0, float(tensor.abs().max())), name


def test_batch_norm_over_processes_is_batch_norm_over_all_rows(together: Together) -> None:
    rows = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)) * 3 + 100  # squares would lose digits
    alone = nn.BatchNorm1d(5)
    expected = alone(rows)

    def work() -> tuple[torch.Tensor, ...]:
        model = nn.Sequential(nn.BatchNorm1d(5))
        called = SharedModel(model, current_ranks(), parallel="ddp", precision="fp32").called
        assert isinstance(model[0], SynchronizedBatchNorm)
        assert list(model.state_dict()) == [f"0.{name}" for name in alone.state_dict()]
        own = rows[:9] if current_ranks().first else rows[9:]
        return called(own).detach(), model[0].running_mean, model[0].running_var, model[0].num_batches_tracked

    (first, *statistics), (second, *others) = together(2, work)
    torch.testing.assert_close(torch.cat([first, second]), expected.detach(), rtol=1e-5, atol=1e-5)
    for found in (statistics, others):
        torch.testing.assert_close(found[0], alone.running_mean)
        torch.testing.assert_close(found[1], alone.running_var)
        assert found[2] == 1


def test_sharded_weights_are_whole_on_no_device(together: Together) -> None:
    """But for those of the block that computes; ranks with other numbers of forward passes wait for each other."""
    clips, _ = clips_and_labels(6)
    alone = small_model().eval()
    with torch.inference_mode():
        expected = [alone(clip[None]) for clip in clips]
    bytes_of_block = max(sum(one.nbytes for one in block.parameters()) for block in blocks(alone))
    whole = sum(one.nbytes for one in alone.parameters())

    def work() -> None:
        ranks, others = current_ranks(), bytes_of_parameters()
        shared = SharedModel(small_model(), ranks, parallel="fsdp", precision="fp32")
        model = shared.evaluated(lambda model: torch.empty(0, 3, 4, 16, 16)).eval()
        found, peak = {}, 0

        def look(*_: object) -> None:
            nonlocal peak
            peak = max(peak, bytes_of_parameters() - others)

        blocks(model)[-1].mlp.register_forward_hook(look)
        with forward_passes(model), torch.inference_mode():
            for number in (0, 1, 2, 3, 4) if ranks.first else (5,):
                found[number] = model(clips[number : number + 1])
        assert all(torch.equal(logits, expected[number]) for number, logits in found.items())
        assert bytes_of_parameters() - others <= 0.6 * whole  # its half
        outside = whole - sum(one.nbytes for block in blocks(alone) for one in block.parameters())
        assert peak <= 0.6 * whole + bytes_of_block + outside
        saved = shared.saved()
        assert (saved is not None) == ranks.first
        if saved is not None:
            for name, tensor in alone.state_dict().items():
                assert torch.equal(saved.state_dict()[name], tensor), name

    together(2, work)


@torch.inference_mode(False)
@torch.no_grad()
def bytes_of_parameters() -> int:
    """Of all parameters in this process, as far as they have memory: shards count as what they are."""
    gc.collect()
    storages = {}
    for one in gc.get_objects():
        if isinstance(one, nn.Parameter):
            storage = local_tensor(one).untyped_storage()
            if storage.device.type != "meta":  # as those that torch.compile has left in this process
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


# --- whole runs


@pytest.fixture(scope="module")
def recipe(image_model: Path) -> Recipe:
    """Eight steps without chance but the one that follows from the file, which is the same in every process."""
    return Recipe(
        ModelRecipe(arm=str(image_model)),
        ClipRecipe(num_frames=4, size=32),
        Optimization(epochs=4, batch_size=6, lr=2e-3, warmup_epochs=1, precision="fp32", ema=0.9),
        Augmentation(erasing=0.5),
    )


@pytest.fixture(scope="module")
def alone(colours: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "alone"
    train(colours, recipe, folder)
    return folder


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(folder / "metrics.jsonl") if record["kind"] == "step"]


def assert_same_run(run: Path, alone: Path) -> None:
    """But for the order of additions."""
    assert losses(run) == pytest.approx(losses(alone), rel=1e-4)
    records, others = (read_metrics(folder / "metrics.jsonl") for folder in (run, alone))
    assert [(one["kind"], one.get("step"), one.get("clips")) for one in records] == [
        (one["kind"], one.get("step"), one.get("clips")) for one in others
    ]
    for name in ("last", "best"):
        weights, expected = (load_model(folder / f"{name}.safetensors").state_dict() for folder in (run, alone))
        for key, tensor in expected.items():
            if not key.endswith(
                "qkv.bias"
            ):  # the keys' has a gradient of rounding errors, which Adam makes as large as any
                torch.testing.assert_close(weights[key], tensor, rtol=1e-3, atol=1e-4)
    found, wanted = (json.loads((folder / "evaluation.json").read_text()) for folder in (run, alone))
    assert (found["top1"], found["evaluated"]) == (wanted["top1"], wanted["evaluated"])
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-3)
    assert sorted(file.name for file in run.iterdir()) == sorted(file.name for file in alone.iterdir())


@pytest.mark.parametrize(("world", "way"), WAYS)
def test_a_run_of_several_processes_is_that_of_one(
    together: Together, colours: Path, recipe: Recipe, alone: Path, tmp_path: Path, world: int, way: Any
) -> None:
    def work() -> tuple[Any, ...]:
        result = train(colours, recipe, tmp_path / "run", parallel=way)
        return result.last, result.evaluation, len(result.history), result.skipped

    results = together(world, work)
    assert_same_run(tmp_path / "run", alone)
    assert all(result == results[0] for result in results)
    assert results[0][2:] == (4, ())


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_state_of_two_processes_is_resumed_by_one_and_by_three(
    start_together: Together,
    together: Together,
    colours: Path,
    recipe: Recipe,
    alone: Path,
    tmp_path: Path,
    way: Any,
) -> None:
    for world in (1, 3):
        run = tmp_path / str(world)

        def work(run: Path = run) -> None:
            before_call(pytest.MonkeyPatch(), Classification, "loss", 6, lambda: os._exit(77))  # amid an epoch
            train(colours, recipe, run, parallel=way, save_every_seconds=0.0)

        for process in start_together(2, work):
            process.join()
            assert process.exitcode  # 77, or what the first death made of the other
        states = StateFolder(RunFolder(run).states, Ranks())
        assert states.newest is not None
        assert states.newest.name in ("000002-00000000", "000002-00000001")  # the last may have been half written
        if world == 1:
            train(colours, recipe, run, resume=True)
        else:
            together(3, lambda: train(colours, recipe, run, resume=True, parallel=way) and None)  # noqa: B023
        assert_same_run(run, alone)


def before_loss_of_rank_one(event: Callable[[], object]) -> None:
    if current_ranks().rank == 1:
        before_call(pytest.MonkeyPatch(), Classification, "loss", 4, event)


def test_the_processes_stop_together_after_a_sigterm_to_one(
    start_together: Together,
    together: Together,
    colours: Path,
    recipe: Recipe,
    alone: Path,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"

    def work() -> None:
        before_loss_of_rank_one(lambda: os.kill(os.getpid(), signal.SIGTERM))
        train(colours, recipe, run)

    for process in start_together(2, work):
        process.join()
        assert process.exitcode == TERMINATED
    assert [record["step"] for record in read_metrics(run / "metrics.jsonl") if "step" in record] == [1, 2, 3, 4]
    together(2, lambda: train(colours, recipe, run, resume=True) and None)
    assert_same_run(run, alone)


def test_where_one_process_is_lost_the_others_end_and_the_state_is_intact(
    start_together: Together,
    colours: Path,
    recipe: Recipe,
    alone: Path,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"

    def work() -> None:
        before_loss_of_rank_one(lambda: os._exit(77))
        with pytest.raises(ProcessError, match=r"another process of this run has ended; .*--resume"):
            train(colours, recipe, run, save_every_seconds=0.0)

    processes = start_together(2, work)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 77]
    train(colours, recipe, run, resume=True)
    assert_same_run(run, alone)


def test_a_process_whose_videos_cannot_be_read_waits_for_the_others(
    together: Together, colours: Path, recipe: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "broken.mp4").write_text("no video")
    files = sorted(colours.rglob("*.mp4"))
    rows = [f"{file},{file.parent.name},{'val' if file.stem.endswith('0') else 'train'}" for file in files]
    rows.append(f"{tmp_path / 'broken.mp4'},red,train")
    manifest = tmp_path / "videos.csv"
    manifest.write_text("\n".join(["path,label,split", *rows]) + "\n")
    small = recipe.vary(batch_size=3, epochs=2)  # one video for each of three processes: one of them gets none

    train(manifest, small, tmp_path / "alone")
    skipped = together(3, lambda: train(manifest, small, tmp_path / "run").skipped)
    assert_same_run(tmp_path / "run", tmp_path / "alone")
    assert all([video.path for video in videos] == [str(tmp_path / "broken.mp4")] for videos in skipped)
    assert any(record.get("clips") == 2 for record in read_metrics(tmp_path / "run" / "metrics.jsonl"))


def test_what_is_wrong_is_said_by_every_process(
    together: Together, colours: Path, recipe: Recipe, tmp_path: Path
) -> None:
    def reason(**values: Any) -> str:
        with pytest.raises(RecipeError) as caught:
            train(colours, recipe.vary(**values), tmp_path / "run")
        return str(caught.value)

    assert (
        together(2, lambda: reason(batch_size=3))
        == ["batch_size must be divisible by 2 processes times accumulate times repeats, 2, got 3"] * 2
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    first, second = together(2, reason)
    assert first == second
    assert re.search("run: not empty", first)


def test_a_bad_loss_is_explained_by_the_process_that_has_it(
    together: Together, colours: Path, recipe: Recipe, tmp_path: Path
) -> None:
    loss = Classification.loss

    def spoilt(task: Classification, model: nn.Module, batch: Any) -> BatchLoss | None:
        if current_ranks().rank == 1:
            batch.clips = batch.clips * float("nan")
        return loss(task, model, batch)

    def reason() -> str:
        pytest.MonkeyPatch().setattr(Classification, "loss", spoilt)
        with pytest.raises(
            RecipeError, match="step 1, epoch 1; the first that is not finite: the clips themselves"
        ) as caught:
            train(colours, recipe, tmp_path / "run")
        return str(caught.value)

    first, second = together(2, reason)
    assert first == second


def test_a_dry_run_tries_all_processes(together: Together, colours: Path, recipe: Recipe) -> None:
    results = together(2, lambda: dry_run(colours, recipe, workers=0, parallel="fsdp"))
    assert [result.steps for result in results] == [2, 2]


def test_what_torchrun_starts_again_goes_on_where_it_was(
    uniformerv2: Callable[..., tuple[int, str, str]],
    colours: Path,
    image_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    command = ["train", colours, "--output", run, "--arm", image_model, "--size", 32, "--num-frames", 4, "--epochs", 2]
    command += ["--overwrite", "--workers", 0, "--batch-size", 4]
    assert uniformerv2(*command)[0] == 0
    finished = (run / "metrics.jsonl").read_text()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert uniformerv2(*command)[0] == 0
    assert (run / "metrics.jsonl").read_text() == finished  # nothing was left to be done


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_what_is_compiled_has_the_gradients_of_one_process(together: Together, way: Any) -> None:
    clips, labels = clips_and_labels(4)
    alone = small_model(depth=1)
    loss_share(alone, clips, labels, 4, 1).backward()
    expected = gradients_and_statistics(alone)

    def work() -> dict[str, torch.Tensor]:
        torch.compile = partial(torch.compile, backend="aot_eager")  # type: ignore[assignment]
        torch.distributed._DEFAULT_FIRST_BUCKET_BYTES = 10_000  # gradients travel in parts, as those of a large model
        model, rank = small_model(depth=1), current_ranks().rank
        called = SharedModel(model, current_ranks(), parallel=way, precision="fp32", compile=True).called
        own = slice(2 * rank, 2 * rank + 2)
        loss_share(called, clips[own], labels[own], 4, 2).backward()
        return gradients_and_statistics(model)

    for found in together(2, work):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert (found[name] - tensor).abs().max() <= 1e-5 * max(1.0, float(tensor.abs().max())), name

"""What only a GPU shows: it agrees with the CPU, and a training goes on with its generators.

The rest of the suite hides the GPU. This folder is run by itself: `pytest tests/gpu`.
"""

from __future__ import annotations

from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uniformerv2 import (
    Predictor,
    StreamPredictor,
    Views,
    arm,
    evaluate,
    extract_features,
    optimize,
    save_model,
    train_classifier,
)
from uniformerv2.data.dataset import VideoDataset, make_loader
from uniformerv2.data.sources import read_annotations
from uniformerv2.device import pick_device
from uniformerv2.distributed import rank_device
from uniformerv2.inference.precision import has_fp8
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.train.log import RunDisplay, read_metrics
from uniformerv2.train.precision import allow_tf32, autocast
from uniformerv2.train.recipe import ClipRecipe, ModelRecipe, Optimization, Recipe, TrainingPrecision

LABELS = ("blue", "green", "red")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU that CUDA sees, and to be run by itself: pytest tests/gpu")
    allow_tf32("fp32")
    return torch.device("cuda")


@pytest.fixture(scope="module", params=["scene", "temporal"])
def model(request: pytest.FixtureRequest, image_model: Path) -> UniFormerV2:
    torch.manual_seed(0)
    armed = arm(image_model, layout=request.param, num_classes=3, labels=LABELS, num_frames=4, size=(32, 32))
    for parameter in armed.parameters():  # nothing may be hidden behind a zero
        nn.init.normal_(parameter, std=0.2)
    return armed.eval()


@pytest.fixture(scope="module")
def clips() -> Tensor:
    return torch.randint(0, 256, (6, 3, 4, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def difference(tensors: list[Tensor], expected: list[Tensor]) -> float:
    """Of all values together, relative to what is expected."""
    one, other = (
        torch.cat([tensor.detach().cpu().double().flatten() for tensor in some]) for some in (tensors, expected)
    )
    return ((one - other).norm() / other.norm()).item()


def step(
    model: UniFormerV2, clips: Tensor, device: torch.device, precision: TrainingPrecision, *, compiled: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of a training step."""
    trained = deepcopy(model).to(device).train()
    called = torch.compile(trained, fullgraph=True) if compiled else trained
    with autocast(precision, device):
        loss = nn.functional.cross_entropy(called(clips.to(device)), torch.arange(6, device=device) % 3)
    loss.backward()
    return loss, [parameter.grad for parameter in trained.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("precision", "close"), [("fp32", 1e-4), ("bf16", 0.05)])
def test_a_training_step_is_that_of_the_cpu(
    model: UniFormerV2, clips: Tensor, gpu: torch.device, precision: TrainingPrecision, close: float, compiled: bool
) -> None:
    torch.compiler.reset()
    loss, gradients = step(model, clips, gpu, precision, compiled=compiled)
    expected_loss, expected = step(model, clips, CPU, "fp32")
    assert difference([loss], [expected_loss]) < close
    assert difference(gradients, expected) < close


@pytest.mark.parametrize("backend", ["torch", "compile"])
@pytest.mark.parametrize(("precision", "close"), [("fp32", 1e-4), ("bf16", 0.05), ("fp8", 0.3)])
@torch.no_grad()
def test_an_optimized_model_is_that_of_the_cpu(
    model: UniFormerV2, clips: Tensor, gpu: torch.device, backend: Any, precision: Any, close: float
) -> None:
    if precision == "fp8" and not has_fp8(gpu):
        pytest.skip("this GPU does not multiply fp8")
    moved = deepcopy(model).to(gpu)
    assert difference([moved(clips.to(gpu))], [model(clips)]) < 1e-4
    fast = optimize(moved, backend=backend, precision=precision)
    # the second is padded to the first, whose result it must not overwrite
    found = [fast(some.to(gpu)) for some in (clips, clips[:4])]
    assert difference(found, [model(clips), model(clips[:4])]) < close


def test_a_compiled_stream_is_that_of_the_cpu(model: UniFormerV2, clips: Tensor, gpu: torch.device) -> None:
    frames = list(clips[:2].transpose(1, 2).flatten(0, 1))
    predictors = [
        StreamPredictor(deepcopy(model).to(device), backend=backend)
        for device, backend in ((gpu, "auto"), (CPU, "torch"))
    ]
    streams = [list(predictor.run(frames, top_k=None)) for predictor in predictors]
    assert len(streams[0]) == 5
    for one, other in zip(*streams, strict=True):
        expected = dict(zip(other.labels, other.scores, strict=True))
        assert dict(zip(one.labels, one.scores, strict=True)) == pytest.approx(expected, abs=1e-4)


def test_predictions_and_evaluations_are_those_of_the_cpu(
    model: UniFormerV2, colours: Path, tmp_path: Path, gpu: torch.device
) -> None:
    save_model(model, tmp_path / "model.safetensors")
    predictors = [
        Predictor(tmp_path / "model.safetensors", views=Views(clips=2), device=name) for name in ("auto", "cpu")
    ]
    assert predictors[0].device.type == pick_device("auto").type == gpu.type
    videos = sorted(colours.rglob("*.mp4"))
    predictions = zip(*(predictor.predict_all(videos, top_k=None) for predictor in predictors), strict=True)
    for scores, expected in ([dict(zip(one.labels, one.scores, strict=True)) for one in both] for both in predictions):
        assert scores == pytest.approx(expected, abs=1e-4)
    results = [evaluate(predictor.model, colours, views=Views(clips=2)) for predictor in predictors]
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-4)
    assert results[0].top1 == results[1].top1


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_a_resumed_run_draws_what_an_unbroken_one_draws(
    colours: Path, image_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: TrainingPrecision
) -> None:
    """Half of the head is dropped: where the generator of the GPU went on elsewhere, the losses would differ."""
    recipe = Recipe(
        ModelRecipe(arm=str(image_model), head_dropout=0.5, drop_path=0.2),
        ClipRecipe(num_frames=4, size=32),
        Optimization(epochs=3, batch_size=4, lr=2e-3, warmup_epochs=0, precision=precision),
    )
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    train_classifier(colours, recipe, unbroken, workers=1)
    with monkeypatch.context() as patch:
        steps = count(1)

        def stop(*_: object) -> None:
            if next(steps) == 5:
                raise KeyboardInterrupt

        patch.setattr(RunDisplay, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            train_classifier(colours, recipe, broken, workers=0, save_every_seconds=0.0)
    train_classifier(colours, recipe, broken, workers=0, resume=True)
    losses, others = ([one["loss"] for one in steps_of(run)] for run in (unbroken, broken))
    assert len(losses) == 9
    assert others == pytest.approx(losses, rel=1e-3 if precision == "fp32" else 0.05)
    assert sum(losses[6:]) < sum(losses[:3])
    assert all(0 < one["memory_mib"] < 500 for one in steps_of(unbroken))  # of the GPU: the process has more


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [one for one in read_metrics(run / "metrics.jsonl") if one["kind"] == "step"]


def test_batches_come_on_the_gpu_and_are_those_of_the_cpu(model: UniFormerV2, colours: Path, gpu: torch.device) -> None:
    dataset = VideoDataset(read_annotations(colours), LABELS, model.preprocessing)
    busy, sums = torch.randn(2048, 2048, device=gpu), []
    for batch in make_loader(dataset, batch_size=4, workers=1, device=gpu):
        assert {tensor.device.type for tensor in batch.tensors} == {"cuda"}
        for _ in range(20):  # work during which the next batches arrive, and memory is used again
            busy = busy @ busy / 2048
        sums.append(batch.clips.double().sum((1, 2, 3, 4, 5)))
    expected = [batch.clips.double().sum((1, 2, 3, 4, 5)) for batch in make_loader(dataset, batch_size=4, workers=0)]
    assert difference(sums, expected) < 1e-12


def test_features_agree_with_those_of_the_cpu(model: UniFormerV2, colours: Path, tmp_path: Path) -> None:
    save_model(model, tmp_path / "model.safetensors")
    for window in (None, 0.6):
        found, expected = (
            extract_features(tmp_path / "model.safetensors", colours, window_seconds=window, device=device, workers=1)
            for device in ("cuda", "cpu")
        )
        assert difference([torch.from_numpy(found.embeddings)], [torch.from_numpy(expected.embeddings)]) < 1e-5


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch, gpu: torch.device) -> None:
    assert rank_device("auto") == gpu
    monkeypatch.setenv("LOCAL_RANK", str(torch.cuda.device_count()))
    assert rank_device("auto") == torch.device("cuda", 0)
    assert rank_device("cpu") == CPU

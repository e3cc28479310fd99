"""Compiled graphs compute the same as the model, and are few: "eager" stands for the compiler behind the tracer."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from models import randn, random_pixels, small_model
from uniformerv2 import Predictor, StreamPredictor, optimize
from uniformerv2.errors import RecipeError
from uniformerv2.inference import optimize as optimizing
from uniformerv2.inference.compiled import CompiledModel, Graphs, compiled
from uniformerv2.inference.fold import fold
from uniformerv2.inference.optimize import pick_backend, rewritten
from uniformerv2.inference.sharing import SharedFrames, sharing_obstacle
from uniformerv2.measuring.models import computing


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are traced, and run without a compiler; counters begin at zero."""
    genuine = torch.compile

    def traced(function: Callable[..., Any], *, fullgraph: bool, dynamic: bool, options: object) -> Callable[..., Any]:
        assert options == {"freezing": True}
        return genuine(function, fullgraph=fullgraph, dynamic=dynamic, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    monkeypatch.setattr("uniformerv2.inference.compiled.use_cache", lambda: None)
    counters.clear()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("name", ["scene", "temporal", "hierarchical q", "siglip", "beit", "dinov3"])
@torch.inference_mode()
def test_one_graph_gives_the_logits_of_clips_and_one_their_features(name: str) -> None:
    model = small_model(name)
    fast = compiled(fold(model))
    for clip in (randn(2, 3, 4, 16, 24), randn(1, 3, 4, 16, 24, seed=2)):
        expected = model(clip)
        torch.testing.assert_close(fast(clip), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert graphs() == 1
    if name in ("scene", "temporal"):
        features, plain = fast.forward_features(clip), model.forward_features(clip)
        torch.testing.assert_close(features.pooled, plain.pooled, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(features.frame_embeddings, plain.frame_embeddings, rtol=1e-5, atol=1e-5)
        assert graphs() == 2


@pytest.mark.parametrize("name", ["scene", "dinov3", "local"])
@torch.inference_mode()
def test_windows_of_a_stream_equal_whole_clips_by_two_graphs(name: str) -> None:
    model, frames = small_model(name), random_pixels(7, 3, 16, 24)
    shared = SharedFrames(compiled(fold(model)))
    for start in range(4):
        shared.add({number: frames[number] for number in range(start, start + 4)})  # four at first, then one
        whole = model.forward_features(frames[start : start + 4].transpose(0, 1)[None])
        torch.testing.assert_close(shared.clip(range(start, start + 4)).pooled, whole.pooled, atol=1e-5, rtol=1e-5)
    # frames are encoded by four, then by one; without sharing, whole windows
    assert graphs() == (1 if sharing_obstacle(model.config) else 3)


@torch.inference_mode()
def test_a_last_batch_is_padded_and_what_keeps_coming_is_not() -> None:
    function = Graphs(lambda x: (x * 2,))
    rows = torch.arange(8.0)[:, None].expand(8, 3)
    for count, made in ((8, 1), (8, 1), (3, 1), (8, 1), (5, 1), (5, 1), (2, 1), (2, 2), (1, 2), (1, 3), (8, 3)):
        [found] = function(rows[:count])
        assert torch.equal(found, rows[:count] * 2)
        assert graphs() == made, count
    function(rows[:3].to(torch.uint8))  # another type, another graph
    assert graphs() == 4


@torch.inference_mode()
def test_where_memory_ran_out_smaller_batches_are_not_padded_to_that_again() -> None:
    ran, limit = list[int](), 16

    def function(x: Tensor) -> tuple[Tensor]:
        ran.append(len(x))
        if len(x) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (x + 1,)

    def untraced(function: Callable[..., Any], options: object) -> Callable[..., Any]:
        return function

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uniformerv2.inference.compiled._graph", untraced)
        some = Graphs(function)
        for count in (16, 8, 8):
            some(torch.zeros(count, 1))
        limit = 2
        for count in (8, 4):
            with pytest.raises(torch.OutOfMemoryError):
                some(torch.zeros(count, 1))
        assert torch.equal(some(torch.zeros(2, 1))[0], torch.ones(2, 1))
    assert ran == [16, 16, 8, 8, 4, 2]


def test_an_optimized_model_is_pickled_and_streams() -> None:
    model = small_model("scene")
    clip = randn(1, 3, 4, 16, 24)
    optimized = optimize(model, backend="compile", validation_clips=[clip])
    assert isinstance(rewritten(optimized), CompiledModel)
    assert torch.equal(pickle.loads(pickle.dumps(optimized))(clip), optimized(clip))
    frames = list(random_pixels(5, 3, 16, 24))
    found, expected = (
        [one.scores for one in StreamPredictor(model, window_frames=4, backend=backend).run(frames, top_k=None)]
        for backend in ("compile", "torch")
    )
    assert len(found) == 2
    assert found == [pytest.approx(scores, abs=1e-5) for scores in expected]


def test_auto_is_torch_on_a_cpu_and_compile_on_a_gpu_where_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clip = small_model("scene"), randn(1, 3, 4, 16, 24)
    optimized = optimize(model, backend="auto")
    assert (optimized.backend, optimized.note) == (
        "torch",
        "backend auto is torch: compiling gains nothing on device cpu",
    )
    assert torch.equal(optimized(clip), optimize(model)(clip))
    for works, chosen, why in ((True, "compile", "works on device cuda"), (False, "torch", "does not work")):
        monkeypatch.setattr(optimizing, "can_compile", lambda device, works=works: works)
        backend, note = pick_backend("auto", torch.device("cuda"), reduces=False)
        assert (backend, why in note) == (chosen, True)
    assert pick_backend("auto", torch.device("cuda"), reduces=True)[0] == "torch"


def test_features_come_from_backends_that_have_them() -> None:
    model, clip = small_model("scene"), randn(1, 3, 4, 16, 24)
    plain = computing(model, precision="fp32", backend="auto")
    assert (type(plain.model), plain.identity) == (type(model), {"precision": "fp32"})
    fast = computing(model, precision="fp32", backend="compile")
    assert fast.identity == {"precision": "fp32", "backend": "compile"}
    with torch.inference_mode():
        found, expected = (one.model.forward_features(clip).pooled for one in (fast, plain))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(RecipeError, match="openvino gives the logits of whole clips alone; take torch"):
        computing(model, precision="fp32", backend="openvino")


def test_a_predictor_pads_what_is_left_of_its_videos(video: Any) -> None:
    model = small_model("scene")
    plain, fast = (Predictor(model, batch_size=4, backend=backend) for backend in ("torch", "compile"))
    counters.clear()
    found = list(fast.predict_all([video] * 3, top_k=None))
    assert graphs() == 1
    for one, other in zip(found, plain.predict_all([video] * 3, top_k=None), strict=True):
        assert one.labels == other.labels
        assert one.scores == pytest.approx(other.scores, abs=1e-5)

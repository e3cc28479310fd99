"""The option that computes fewer tokens: what it accepts, what it refuses, and where it applies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models import random_pixels, small_model
from uniformerv2 import Predictor, Preprocessing, RecipeError, Reduction, StreamPredictor, optimize, save_model
from uniformerv2.cli import main
from uniformerv2.inference.optimize import NO_LIMITS, REDUCED_LIMITS, Comparison
from uniformerv2.inference.precision import InferencePrecision
from uniformerv2.inference.reduction import Method
from uniformerv2.model.uniformerv2 import UniFormerV2


@pytest.fixture(scope="module")
def model() -> UniFormerV2:
    return small_model("scene", Preprocessing(num_frames=4, size=(32, 32)), image_size=(32, 32))


def clips(number: int) -> torch.Tensor:
    return random_pixels(number, 3, 4, 32, 32)


@pytest.mark.parametrize("text", ["merge:0.5", "unchanged:0.02", "unchanged:0"])
def test_a_reduction_is_the_same_after_its_text(text: str) -> None:
    assert str(Reduction.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge", "METHOD:AMOUNT"),
        ("merge:half", "'merge:half'"),
        ("drop:0.5", "merge or unchanged, got 'drop'"),
        ("merge:1", "between 0 and 1, got 1"),
        ("merge:0", "between 0 and 1, got 0"),
        ("merge:nan", "between 0 and 1, got nan"),
        ("unchanged:-0.1", "between 0 and 1, got -0.1"),
    ],
)
def test_other_methods_and_amounts_are_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Reduction.parse(text)


@pytest.mark.usefixtures("bf16")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["merge", "unchanged"])
def test_the_given_model_is_not_changed_and_the_other_is_reduced(
    model: UniFormerV2, method: Method, precision: InferencePrecision
) -> None:
    with torch.inference_mode():
        before = model(clips(2))
        # far from the plain model's, so that nothing passes by being ignored
        reduced = optimize(model, precision=precision, reduction=Reduction(method, 0.9))(clips(2))
        after = model(clips(2))
    assert torch.equal(before, after)
    assert (reduced - before).abs().max() > 0.001 * before.abs().max()
    assert reduced.dtype == torch.float32


def test_more_merging_changes_more(model: UniFormerV2) -> None:
    slight, strong = (
        optimize(model, reduction=Reduction("merge", share), validation_clips=[clips(4)], limits=NO_LIMITS).comparison
        for share in (0.1, 0.9)
    )
    assert 0 < slight.deviation < strong.deviation


def test_only_changed_classes_are_limited() -> None:
    assert Comparison(100, 3.0, 2).within(REDUCED_LIMITS)
    assert not Comparison(100, 0.0, 3).within(REDUCED_LIMITS)


def test_obstacles_are_named(model: UniFormerV2) -> None:
    for reduction in (Reduction("merge", 0.5), Reduction("unchanged", 0.02)):
        with pytest.raises(RecipeError, match="local UniBlocks"):
            optimize(small_model("temporal"), reduction=reduction)
    with pytest.raises(RecipeError, match="backend openvino does not reduce tokens; torch does"):
        optimize(model, backend="openvino", reduction=Reduction("merge", 0.5))
    with pytest.raises(RecipeError, match="saves nothing; take merge"):
        StreamPredictor(model, reduction=Reduction("unchanged", 0.1))


def test_a_stream_has_the_scores_of_whole_windows(model: UniFormerV2) -> None:
    reduction = Reduction("merge", 0.5)
    frames = list(clips(2).transpose(1, 2).flatten(0, 1))  # 8 of (3, height, width)
    found = list(StreamPredictor(model, stride_frames=2, reduction=reduction).run(iter(frames), top_k=None))
    whole = optimize(model, reduction=reduction)
    assert len(found) == 3
    for prediction, first in zip(found, (0, 2, 4), strict=True):
        window = torch.stack(frames[first : first + 4], dim=1)[None]
        expected = whole(window).softmax(-1)[0].sort(descending=True).values
        torch.testing.assert_close(torch.tensor(prediction.scores), expected, rtol=0, atol=1e-5)


def test_predict_takes_a_reduction(model: UniFormerV2, colours: Path, tmp_path: Path) -> None:
    video = next((colours / "red").iterdir())
    plain = Predictor(model).predict(video, top_k=None)
    reduced = Predictor(model, reduction=Reduction("merge", 0.9)).predict(video, top_k=None)
    assert sorted(plain.scores) != pytest.approx(sorted(reduced.scores), abs=1e-6)
    save_model(model, checkpoint := tmp_path / "model.safetensors")
    assert main(["predict", str(checkpoint), str(video), "--reduction", "merge:0.9"]) == 0
    assert main(["predict", str(checkpoint), str(video), "--reduction", "merge:2"]) == 2

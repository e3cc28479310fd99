"""What users hold is a model that can be saved, trained, wrapped, copied and sent to other processes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from helpers import FRESH, coloured
from models import random_pixels, small_model
from uniformerv2 import (
    CheckpointError,
    Predictor,
    RecipeError,
    Reduction,
    StreamPredictor,
    evaluate,
    extract_features,
    load_model,
    load_weights,
    map_head,
    optimize,
    save_model,
)
from uniformerv2.inference.optimize import rewritten
from uniformerv2.predict import Prediction

WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": lambda model: torch.compile(model),  # type: ignore[dict-item, return-value]
    "data parallel": nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "compiled, then data parallel": lambda model: nn.DataParallel(torch.compile(model)),  # type: ignore[arg-type]
}


def assert_equal(one: Prediction, other: Prediction) -> None:
    assert (one.labels, one.scores) == (other.labels, other.scores)


@pytest.mark.parametrize("owner", ["predictor", "stream", "optimize"])
def test_what_is_handed_out_is_saved_loaded_trained_and_optimized_again(
    checkpoint: Path, tmp_path: Path, owner: str
) -> None:
    plain = load_model(checkpoint)
    held = {
        "predictor": lambda: Predictor(checkpoint).model,
        "stream": lambda: StreamPredictor(checkpoint).model,
        "optimize": lambda: optimize(plain).model,
    }[owner]()
    save_model(held, tmp_path / "saved.safetensors")
    held.save_pretrained(tmp_path / "folder")  # type: ignore[attr-defined]
    for saved in (tmp_path / "saved.safetensors", tmp_path / "folder"):
        assert all(
            torch.equal(tensor, plain.state_dict()[key]) for key, tensor in load_model(saved).state_dict().items()
        )
    clip = random_pixels(1, 3, 4, 32, 32)
    again = optimize(copy.deepcopy(held))
    torch.testing.assert_close(again(clip), optimize(plain)(clip), rtol=0, atol=0)
    assert Predictor(held).model is held
    held.train()(clip).sum().backward()
    assert all(parameter.grad is not None for parameter in held.head.parameters())


def test_no_attribute_hands_out_the_rewritten_model(checkpoint: Path) -> None:
    predictor, plain = Predictor(checkpoint), set(load_model(checkpoint).state_dict())
    for owner in (predictor, predictor.optimized, StreamPredictor(checkpoint)):
        public = (getattr(owner, name) for name in dir(owner) if not name.startswith("_"))
        assert all(set(value.state_dict()) == plain for value in public if isinstance(value, nn.Module))


@pytest.mark.parametrize("broken", ["rewritten", "another head"])
def test_no_file_is_written_that_nothing_can_load(tmp_path: Path, broken: str) -> None:
    model = small_model()
    if broken == "rewritten":
        model = rewritten(optimize(model))
    else:
        model.head.linear = nn.Linear(32, 7)
    with pytest.raises(CheckpointError, match=r"x\.safetensors: not written, .* model\.config") as error:
        save_model(model, tmp_path / "x.safetensors")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("reduction", [None, Reduction("merge", 0.5), Reduction("unchanged", 0.1)], ids=str)
def test_copies_and_pickles_of_a_predictor_predict_the_same(video: Path, reduction: Reduction | None) -> None:
    predictor = Predictor(small_model(), calibration_videos=[video], reduction=reduction)
    expected = predictor.predict(video)
    for other in (copy.deepcopy(predictor), pickle.loads(pickle.dumps(predictor))):
        assert_equal(other.predict(video), expected)
        assert other.optimized.comparison == predictor.optimized.comparison
        assert other.optimized.model is other.model


def stream_labels(predictor: StreamPredictor) -> list[tuple[str, ...]]:
    frames = [torch.from_numpy(frame).permute(2, 0, 1) for frame in coloured([0] * 5)]
    return [prediction.labels for prediction in predictor.run(frames)]


def test_predictors_and_optimized_models_work_in_fresh_processes(checkpoint: Path, video: Path) -> None:
    predictor, stream = Predictor(checkpoint), StreamPredictor(checkpoint)
    clip = random_pixels(1, 3, 4, 32, 32)
    with FRESH.Pool(1) as pool:
        [found] = pool.map(predictor.predict, [video])
        logits = pool.apply(predictor.optimized, (clip,))
    assert_equal(found, predictor.predict(video))
    assert torch.equal(logits, predictor.optimized(clip))
    assert stream_labels(pickle.loads(pickle.dumps(stream))) == stream_labels(stream)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_models_are_taken_everywhere(
    checkpoint: Path, colours: Path, video: Path, tmp_path: Path, wrapper: str
) -> None:
    plain = load_model(checkpoint)
    wrapped = WRAPPERS[wrapper](plain)
    assert_equal(Predictor(wrapped).predict(video), Predictor(plain).predict(video))
    ours, theirs = (Predictor(model).timeline(video, window_seconds=0.5) for model in (wrapped, plain))
    assert (ours.scores == theirs.scores).all()
    assert stream_labels(StreamPredictor(wrapped)) == stream_labels(StreamPredictor(plain))
    assert evaluate(wrapped, colours, workers=0).loss == evaluate(plain, colours, workers=0).loss
    assert extract_features(wrapped, [video], workers=0).embeddings.shape == (1, 32)
    with pytest.raises(CheckpointError, match="this one has 3 others"):
        map_head(wrapped, "kinetics400")
    save_model(wrapped, tmp_path / "x.safetensors")
    load_weights(wrapped, load_model(tmp_path / "x.safetensors").state_dict())


def test_a_model_that_processes_train_together_is_taken(checkpoint: Path, video: Path) -> None:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(load_model(checkpoint))
        assert_equal(Predictor(wrapped).predict(video), Predictor(checkpoint).predict(video))
    finally:
        distributed.destroy_process_group()


def test_a_head_that_was_replaced_alone_is_refused(video: Path) -> None:
    model = small_model()
    model.head.linear = nn.Linear(32, 7)
    for use in (Predictor, StreamPredictor, lambda model: extract_features(model, [video])):
        with pytest.raises(
            CheckpointError, match=r"head of the model has 7 classes, its config 5, and it has 0 labels"
        ):
            use(model)
    model.config = replace(model.config, num_classes=7)
    assert len(Predictor(model).predict(video, top_k=None).labels) == 7


def test_another_module_is_named() -> None:
    with pytest.raises(TypeError, match=r"expected a UniFormerV2, got Linear"):
        Predictor(nn.DataParallel(nn.Linear(2, 2)))


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_a_model_stays(checkpoint: Path, colours: Path, video: Path, training: bool) -> None:
    model = load_model(checkpoint).train(training)
    model.backbone.eval()  # as of a frozen backbone
    before = [module.training for module in model.modules()]
    Predictor(model).predict(video)
    optimize(model, validation_clips=[random_pixels(1, 3, 4, 32, 32)])
    measured = evaluate(model, colours, workers=0)
    extract_features(model, [video], workers=0)
    assert [module.training for module in model.modules()] == before
    assert measured.loss == evaluate(checkpoint, colours, workers=0).loss, "computed in eval mode"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_of_another_dtype_computes_in_the_precision_that_is_asked_for(
    checkpoint: Path, colours: Path, video: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    model = load_model(checkpoint).to(dtype)
    save_model(model, tmp_path / "x.safetensors")
    saved = load_model(tmp_path / "x.safetensors")  # in float32
    assert_equal(Predictor(model, calibration_videos=[video]).predict(video), Predictor(saved).predict(video))
    assert evaluate(model, colours, workers=0).loss == evaluate(saved, colours, workers=0).loss
    assert model.head.linear.weight.dtype == dtype


def test_a_predictor_whose_model_was_trained_on_says_so(checkpoint: Path, video: Path) -> None:
    predictor = Predictor(checkpoint)
    optimizer = torch.optim.SGD(predictor.model.parameters(), lr=0.1)
    predictor.model.train()(random_pixels(1, 3, 4, 32, 32)).sum().backward()
    optimizer.step()
    for use in (predictor.predict, predictor.timeline):
        with pytest.raises(RecipeError, match=r"weights of the model changed .* make another Predictor"):
            use(video)
    Predictor(predictor.model).predict(video)

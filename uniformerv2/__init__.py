"""UniFormerV2 video classifiers: arm an image transformer, train, evaluate, predict.

Names are imported when they are first used, so that `import uniformerv2` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uniformerv2.data.annotations import Annotation
    from uniformerv2.data.sources import read_annotations
    from uniformerv2.errors import AnnotationError, CheckpointError, RecipeError, UniFormerV2Error, VideoError
    from uniformerv2.fine_tuning import FineTuned, fine_tune
    from uniformerv2.inference.optimize import Optimized, optimize
    from uniformerv2.inference.reduction import Reduction
    from uniformerv2.localise import Localiser
    from uniformerv2.measuring.evaluation import evaluate
    from uniformerv2.measuring.features import VideoFeatures, extract_features
    from uniformerv2.measuring.multilabel import MultilabelEvaluation, evaluate_multilabel
    from uniformerv2.measuring.results import Evaluation
    from uniformerv2.model.config import ModelConfig, Preprocessing, named_config
    from uniformerv2.model.uniformerv2 import ClipFeatures, StageAttention
    from uniformerv2.predict import Prediction, Predictor
    from uniformerv2.probing.recipe import ProbeRecipe
    from uniformerv2.probing.run import Probed, probe
    from uniformerv2.spans.label_scoring import LabelScores, score_labels
    from uniformerv2.spans.scoring import SpanScores, score_spans
    from uniformerv2.spans.span import Span
    from uniformerv2.stream import StreamEvent, StreamPrediction, StreamPredictor
    from uniformerv2.stream_spans import SpanEvent, StreamLocaliser
    from uniformerv2.tasks.classification.training import train_classifier
    from uniformerv2.tasks.localisation.evaluation import evaluate_localiser
    from uniformerv2.tasks.localisation.recipe import LocaliserRecipe
    from uniformerv2.tasks.localisation.task import LocalisationResult
    from uniformerv2.tasks.localisation.training import LocaliserResult, train_localiser
    from uniformerv2.tasks.run import train_model
    from uniformerv2.timeline import Timeline
    from uniformerv2.train.recipe import Recipe
    from uniformerv2.video.limits import Limits
    from uniformerv2.video.live import LiveFrames
    from uniformerv2.video.reader import VideoReader
    from uniformerv2.video.views import Views
    from uniformerv2.weights.checkpoint import save_model
    from uniformerv2.weights.convert import convert
    from uniformerv2.weights.labels import class_list, map_head
    from uniformerv2.weights.loading import HubUniFormerV2 as UniFormerV2
    from uniformerv2.weights.loading import arm, load_model, load_weights
    from uniformerv2.weights.zoo import list_models

_NAMES = {
    "data.annotations": ("Annotation",),
    "data.sources": ("read_annotations",),
    "errors": ("AnnotationError", "CheckpointError", "RecipeError", "UniFormerV2Error", "VideoError"),
    "fine_tuning": ("fine_tune", "FineTuned"),
    "inference.optimize": ("optimize", "Optimized"),
    "inference.reduction": ("Reduction",),
    "localise": ("Localiser",),
    "measuring.evaluation": ("evaluate",),
    "measuring.features": ("extract_features", "VideoFeatures"),
    "measuring.multilabel": ("evaluate_multilabel", "MultilabelEvaluation"),
    "measuring.results": ("Evaluation",),
    "model.config": ("ModelConfig", "named_config", "Preprocessing"),
    "model.uniformerv2": ("ClipFeatures", "StageAttention"),
    "predict": ("Prediction", "Predictor"),
    "probing.recipe": ("ProbeRecipe",),
    "probing.run": ("probe", "Probed"),
    "spans.label_scoring": ("score_labels", "LabelScores"),
    "spans.scoring": ("score_spans", "SpanScores"),
    "spans.span": ("Span",),
    "stream": ("StreamEvent", "StreamPrediction", "StreamPredictor"),
    "stream_spans": ("SpanEvent", "StreamLocaliser"),
    "tasks.classification.training": ("train_classifier",),
    "tasks.localisation.evaluation": ("evaluate_localiser",),
    "tasks.localisation.recipe": ("LocaliserRecipe",),
    "tasks.localisation.task": ("LocalisationResult",),
    "tasks.localisation.training": ("LocaliserResult", "train_localiser"),
    "tasks.run": ("train_model",),
    "timeline": ("Timeline",),
    "train.recipe": ("Recipe",),
    "video.limits": ("Limits",),
    "video.live": ("LiveFrames",),
    "video.reader": ("VideoReader",),
    "video.views": ("Views",),
    "weights.checkpoint": ("save_model",),
    "weights.convert": ("convert",),
    "weights.labels": ("class_list", "map_head"),
    "weights.loading": ("arm", "load_model", "load_weights", "UniFormerV2"),
    "weights.zoo": ("list_models",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}
_CLASSES = {"UniFormerV2": "HubUniFormerV2"}  # public names that differ from those where they are defined

__version__ = "0.1.0"
__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), _CLASSES.get(name, name))


def __dir__() -> list[str]:
    return __all__

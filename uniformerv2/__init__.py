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
    from uniformerv2.measuring.evaluation import evaluate
    from uniformerv2.measuring.features import VideoFeatures, extract_features
    from uniformerv2.measuring.metrics import Evaluation
    from uniformerv2.model.config import ModelConfig, Preprocessing, named_config
    from uniformerv2.model.uniformerv2 import ClipFeatures, StageAttention
    from uniformerv2.predict import Prediction, Predictor
    from uniformerv2.stream import StreamEvent, StreamPrediction, StreamPredictor
    from uniformerv2.tasks.classification.training import train_classifier
    from uniformerv2.timeline import Timeline
    from uniformerv2.train.recipe import Recipe
    from uniformerv2.video.live import LiveFrames
    from uniformerv2.video.reader import VideoReader
    from uniformerv2.video.views import Views
    from uniformerv2.weights.checkpoint import save_model
    from uniformerv2.weights.convert import convert
    from uniformerv2.weights.labels import class_list, map_head
    from uniformerv2.weights.loading import HubUniFormerV2 as UniFormerV2
    from uniformerv2.weights.loading import arm, load_model, load_weights
    from uniformerv2.weights.zoo import list_models

_HOMES = {
    "Annotation": "data.annotations",
    "read_annotations": "data.sources",
    "AnnotationError": "errors",
    "CheckpointError": "errors",
    "RecipeError": "errors",
    "UniFormerV2Error": "errors",
    "VideoError": "errors",
    "FineTuned": "fine_tuning",
    "fine_tune": "fine_tuning",
    "Optimized": "inference.optimize",
    "optimize": "inference.optimize",
    "Reduction": "inference.reduction",
    "ModelConfig": "model.config",
    "Preprocessing": "model.config",
    "named_config": "model.config",
    "ClipFeatures": "model.uniformerv2",
    "StageAttention": "model.uniformerv2",
    "Prediction": "predict",
    "Predictor": "predict",
    "StreamEvent": "stream",
    "StreamPrediction": "stream",
    "StreamPredictor": "stream",
    "Timeline": "timeline",
    "LiveFrames": "video.live",
    "Evaluation": "measuring.metrics",
    "evaluate": "measuring.evaluation",
    "VideoFeatures": "measuring.features",
    "extract_features": "measuring.features",
    "train_classifier": "tasks.classification.training",
    "Recipe": "train.recipe",
    "VideoReader": "video.reader",
    "Views": "video.views",
    "UniFormerV2": "weights.loading",
    "class_list": "weights.labels",
    "convert": "weights.convert",
    "list_models": "weights.zoo",
    "load_model": "weights.loading",
    "load_weights": "weights.loading",
    "map_head": "weights.labels",
    "save_model": "weights.checkpoint",
    "arm": "weights.loading",
}

_CLASSES = {"UniFormerV2": "HubUniFormerV2"}  # public names that differ from those where they are defined

__version__ = "0.1.0"
__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), _CLASSES.get(name, name))


def __dir__() -> list[str]:
    return __all__

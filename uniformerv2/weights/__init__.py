"""Files of any origin -> architecture, weights, labels, preprocessing."""

from uniformerv2.weights.checkpoint import checkpoint_info, load_model, load_weights, save_model
from uniformerv2.weights.image import arm

__all__ = ["arm", "checkpoint_info", "load_model", "load_weights", "save_model"]

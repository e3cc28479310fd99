"""Files of any origin -> architecture, weights, labels, preprocessing.

Names are imported when they are first used: class lists need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uniformerv2.weights.checkpoint import checkpoint_info, save_model
    from uniformerv2.weights.loading import arm, load_model, load_weights, resolve_model

_HOMES = {
    "arm": "loading",
    "checkpoint_info": "checkpoint",
    "load_model": "loading",
    "load_weights": "loading",
    "resolve_model": "loading",
    "save_model": "checkpoint",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

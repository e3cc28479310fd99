"""Models as compiled graphs: each part of the forward pass as a whole, without a break, for static shapes."""

from __future__ import annotations

import copy
import threading
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor

from uniformerv2.inference.compile_cache import note_checksums, use_cache
from uniformerv2.inference.sharing import sharing_obstacle
from uniformerv2.model.positions import TokenLayout
from uniformerv2.model.uniformerv2 import ClipFeatures, EncodedFrames, UniFormerV2

REPLAYED_VALUES = 10_000_000
"""Values in the input of a CUDA graph, at most: eight clips of 8 x 224 x 224. There launches take longer than the work.

Beyond, the memory that a graph holds gains nothing. Not measured on a GPU.
"""
Function = Callable[..., tuple[Tensor, ...]]


class CompiledModel(UniFormerV2):
    """A folded model that computes the same by compiled graphs: logits, features, and frames that clips share."""

    _logits: Graphs
    _pooled: Graphs
    _frames: Graphs
    _stages: Graphs

    def forward(self, clip: Tensor | EncodedFrames) -> Tensor:
        return self.head(self.aggregate(clip).pooled) if isinstance(clip, EncodedFrames) else self._logits(clip)[0]

    def forward_features(self, clip: Tensor, *, attention: bool = False) -> ClipFeatures:
        if attention:
            return UniFormerV2.forward_features(self, clip, attention=True)
        pooled, frames = self._pooled(clip)
        return ClipFeatures(pooled, frames)

    def encode(self, clip: Tensor) -> EncodedFrames:
        if sharing_obstacle(self.config) or len(clip) > 1:
            return UniFormerV2.encode(self, clip)
        # (1, 3, frames, height, width) -> (frames, 3, 1, height, width): how many there are is no new shape
        embeddings, *stages = (part.transpose(0, 1) for part in self._frames(clip.transpose(0, 2)))
        grid = (clip.shape[-2] // self.config.patch_size, clip.shape[-1] // self.config.patch_size)
        return EncodedFrames(tuple(stages), embeddings, TokenLayout(int(self.config.class_token), grid))

    def aggregate(self, encoded: EncodedFrames, *, attention: bool = False) -> ClipFeatures:
        if attention:
            return UniFormerV2.aggregate(self, encoded, attention=True)
        layout = TokenLayout(encoded.layout.class_tokens, encoded.layout.grid)
        pooled, frames = self._stages(encoded.frame_embeddings, *encoded.stages, layout=layout)
        return ClipFeatures(pooled, frames)


def compiled(model: UniFormerV2) -> CompiledModel:
    """A folded model, compiled; each graph when it is first needed."""
    fast = copy.copy(model)
    fast.__class__ = CompiledModel
    graphs = cast(CompiledModel, fast)
    graphs._logits = Graphs(lambda clip: (model(clip),))
    graphs._pooled = Graphs(lambda clip: _features(model.forward_features(clip)))
    graphs._frames = Graphs(lambda clip: _encoded(model.encode(clip)))
    graphs._stages = Graphs(
        lambda frames, *stages, layout: _features(model.aggregate(EncodedFrames(stages, frames, layout)))
    )
    return graphs


def _features(features: ClipFeatures) -> tuple[Tensor, Tensor]:
    return features.pooled, features.frame_embeddings


def _encoded(encoded: EncodedFrames) -> tuple[Tensor, ...]:
    return encoded.frame_embeddings, *encoded.stages


class Graphs:
    """A function of batches as graphs of static shapes.

    A smaller batch than one that a graph is for is padded, and its result cut, instead of compiling again; but where
    that would compute twice the rows or more two times in a row, it is no last batch, and gets a graph of its own. A
    graph for which memory ran out is dropped.

    Args:
        function: a row of each of its results depends on that row of its inputs alone.
    """

    def __init__(self, function: Function) -> None:
        self._function = function
        self._graphs: defaultdict[Any, dict[int, Function]] = defaultdict(dict)  # by shapes of a row, then by rows
        self._padded = 0  # rows of the last batch, where it was padded

    def __call__(self, *inputs: Tensor, **constants: Any) -> tuple[Tensor, ...]:
        """Tensors (rows, ...), and what the graph is made for -> tensors (rows, ...)."""
        rows = len(inputs[0])
        on_gpu = inputs[0].device.type == "cuda"
        # before torch 2.13, other threads than the main one cannot replay (pytorch/pytorch#123177)
        may_replay = on_gpu and threading.current_thread() is threading.main_thread()
        shapes = tuple((one.shape[1:], one.dtype) for one in inputs)
        graphs = self._graphs[shapes, tuple(constants.values()), may_replay]
        size = self._size(rows, graphs)
        padded = [_padded(one, size).contiguous() for one in inputs]
        replayed = may_replay and padded[0].numel() <= REPLAYED_VALUES
        new, folder = size not in graphs, use_cache()
        if new:
            # freezing: weights are constants, whose layout may change, as in `pack`; a GPU gains nothing by it
            options = {"triton.cudagraphs": replayed} if on_gpu else {"freezing": True}
            graphs[size] = _graph(partial(self._function, **constants), options)
        if replayed:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            results = graphs[size](*padded)
        except torch.OutOfMemoryError:
            for larger in [one for one in graphs if one >= size]:
                del graphs[larger]
            raise
        if new:
            note_checksums(folder)
        # the memory of a CUDA graph's results is written to again
        return tuple(result[:rows].clone() if replayed else result[:rows] for result in results)

    def _size(self, rows: int, graphs: dict[int, Function]) -> int:
        size = min((size for size in graphs if size >= rows), default=rows)
        again, self._padded = rows == self._padded, rows if size > rows else 0
        return rows if again and size >= 2 * rows else size


def _padded(tensor: Tensor, rows: int) -> Tensor:
    missing = rows - len(tensor)
    return torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])]) if missing else tensor


def _graph(function: Function, options: dict[str, Any]) -> Function:
    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        return function(*inputs)

    # code of its own: torch.compile gives up after eight variants of one code
    own = FunctionType(run.__code__.replace(), run.__globals__, closure=run.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False, options=options)

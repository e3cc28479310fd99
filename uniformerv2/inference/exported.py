"""Models exported as graphs for OpenVINO and ONNX Runtime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from uniformerv2.errors import RecipeError
from uniformerv2.inference.fold import fold
from uniformerv2.inference.mapped import release_mapped_weights
from uniformerv2.inference.precision import InferencePrecision, has_bf16
from uniformerv2.model.config import Preprocessing
from uniformerv2.model.uniformerv2 import UniFormerV2


class OpenVinoModel:
    """A graph that OpenVINO runs on the CPU, compiled for each batch size.

    Args:
        model: on the CPU.
        precision: "int8" quantises the linear layers and runs the rest in bf16 where the processor has it.
        calibration_clips: batches of clips for "int8".

    Raises:
        RecipeError: openvino, or nncf for "int8", is not installed.
    """

    def __init__(
        self, model: UniFormerV2, precision: InferencePrecision, calibration_clips: Sequence[Tensor] = ()
    ) -> None:
        openvino = _package("openvino")
        self._preprocessing = model.preprocessing
        self._bf16 = precision == "bf16" or (precision == "int8" and has_bf16(torch.device("cpu")))
        self._core = openvino.Core()
        with _quiet():
            self._graph = openvino.convert_model(export(model))
        if precision == "int8":
            self._graph = self._quantised(calibration_clips)
        self._compiled: dict[tuple[int, ...], Any] = {}

    def __call__(self, clip: Tensor) -> Tensor:
        clip = as_floats(clip, self._preprocessing)
        shape = tuple(clip.shape)
        if shape not in self._compiled:
            self._compiled[shape] = self._compile(shape)
        return torch.from_numpy(self._compiled[shape](clip.numpy())[0].copy())

    def __getstate__(self) -> dict[str, Any]:
        with TemporaryDirectory() as folder:  # OpenVINO writes a graph to files only
            files = [Path(folder) / name for name in ("graph.xml", "graph.bin")]
            _package("openvino").serialize(self._graph, *files)
            graph = [file.read_bytes() for file in files]
        return {"_preprocessing": self._preprocessing, "_bf16": self._bf16, "_graph": graph}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _core=_package("openvino").Core(), _compiled={})
        self._graph = self._core.read_model(*state["_graph"])

    def _compile(self, shape: tuple[int, ...]) -> Any:
        _check_shape(shape, self._preprocessing)
        graph = self._graph.clone()
        graph.reshape({0: list(shape)})
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if self._bf16 else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        return self._core.compile_model(graph, "CPU", options)

    def _quantised(self, calibration_clips: Sequence[Tensor]) -> Any:
        nncf = _package("nncf")
        clips = [as_floats(clip, self._preprocessing)[None].numpy() for batch in calibration_clips for clip in batch]
        graph = self._graph.clone()
        graph.reshape({0: list(clips[0].shape)})
        with _quiet():
            quantised = nncf.quantize(
                graph, nncf.Dataset(clips), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(clips)
            )
        return quantised


class OnnxRuntimeModel:
    """A graph that ONNX Runtime runs on the CPU, in float32.

    Raises:
        RecipeError: onnxruntime, onnx or onnxscript is not installed.
    """

    def __init__(self, model: UniFormerV2) -> None:
        runtime = _package("onnxruntime")
        for exporter in ("onnx", "onnxscript"):
            _package(exporter)
        self._preprocessing = model.preprocessing
        with _quiet():
            program = torch.onnx.export(export(model), dynamo=True, verbose=False)
        assert program is not None
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        graph = program.model_proto.SerializeToString()
        self._session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def __call__(self, clip: Tensor) -> Tensor:
        _check_shape(tuple(clip.shape), self._preprocessing)
        name = self._session.get_inputs()[0].name
        return torch.from_numpy(self._session.run(None, {name: as_floats(clip, self._preprocessing).numpy()})[0])


def export(model: UniFormerV2) -> torch.export.ExportedProgram:
    """A folded model as a graph: any number of clips, normalised floats of the preprocessing's shape."""
    preprocessing = model.preprocessing
    # two clips: torch.export makes a size of one a constant
    clips = torch.zeros(2, 3, preprocessing.num_frames, *preprocessing.size)
    folded = fold(model, lambda _: release_mapped_weights(model))
    return torch.export.export(folded, (clips,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def as_floats(clip: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The input of the graphs: uint8 RGB clips are normalised, floats are not."""
    if clip.dtype != torch.uint8:
        return clip.float().contiguous()
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    ordered = clip.flip(-4) if preprocessing.channel_order == "bgr" else clip
    return (ordered.float() / 255 - mean) / std


def _check_shape(shape: tuple[int, ...], preprocessing: Preprocessing) -> None:
    wanted = (3, preprocessing.num_frames, *preprocessing.size)
    if shape[1:] != wanted:
        raise ValueError(f"clip must be (batch, {', '.join(map(str, wanted))}) for an exported graph, got {shape}")


def _package(name: str) -> Any:
    try:
        with _quiet():
            return import_module(name)
    except ImportError:
        raise RecipeError(f'{name} is not installed: pip install "uniformerv2[inference]"') from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the progress and the warnings of exporters."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)

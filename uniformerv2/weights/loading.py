"""Files of any origin -> models: load_model, arm and resolve_model, and the class of the models that they return."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor, nn

from uniformerv2.device import pick_device
from uniformerv2.errors import CheckpointError
from uniformerv2.model.arming import fit_weights, load_image_weights
from uniformerv2.model.config import Layout, LocalMixing, ModelConfig, Preprocessing, layout_options
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.model.wrappers import plain_model
from uniformerv2.weights.checkpoint import (
    FORMAT,
    CheckpointSource,
    NotAVideoModel,
    check_fit,
    open_checkpoint,
    rename_video_keys,
    save_model,
)
from uniformerv2.weights.download import hub_file
from uniformerv2.weights.files import ALIGNMENT, HUB_FILE
from uniformerv2.weights.image_files import ImageSource, read_image_source
from uniformerv2.weights.image_recognise import Constants, read_image_model
from uniformerv2.weights.key_names import StateDict
from uniformerv2.weights.labels import map_head
from uniformerv2.weights.recognise import CheckpointInfo, Known, check_head, fit_labels
from uniformerv2.weights.unwrapping import Weights, unwrap

HUB_CONFIG = {  # the hub counts downloads by this file; it is never read, so that it cannot contradict the weights
    "library_name": "uniformerv2",
    "weights": HUB_FILE,
    "note": f"architecture, labels and preprocessing are in the metadata of {HUB_FILE}",
}

_NAMES = [field.name for field in fields(ModelConfig)]
# fields that describe the image transformer; its patch size is read from the tensors
IMAGE_FIELDS = set(_NAMES[: _NAMES.index("local_blocks")]) - {"patch_size"}


class HubUniFormerV2(
    UniFormerV2,
    ModelHubMixin,
    library_name="uniformerv2",
    pipeline_tag="video-classification",
    paper_url="https://arxiv.org/abs/2211.09552",
):
    # public as `uniformerv2.UniFormerV2`: the network with from_pretrained, save_pretrained and push_to_hub
    __doc__ = UniFormerV2.__doc__

    # of the checkpoint that it was loaded from; saved with it
    origin: str = ""
    licence: str = ""

    def _save_pretrained(self, save_directory: Path) -> None:
        save_model(self, save_directory / HUB_FILE)
        (save_directory / "config.json").write_text(json.dumps(HUB_CONFIG, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **options: Any,
    ) -> HubUniFormerV2:
        """Load a model from a repository of the hub or from a folder that `save_pretrained` wrote.

        Args:
            pretrained_model_name_or_path: "owner/name", or a folder.
            revision, cache_dir, force_download, local_files_only, token: as everywhere in huggingface_hub.
            options: those of `load_model`.

        Raises:
            CheckpointError: there is no such file, or as `load_model`.
        """
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir():
            return load_model(folder / HUB_FILE, **options)
        download = partial(
            hub_file,
            str(pretrained_model_name_or_path),
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        with suppress(CheckpointError):
            download("config.json")  # counts as a download
        return load_model(download(HUB_FILE), **options)


def load_model(
    source: CheckpointSource,
    *,
    dataset: str | None = None,
    labels: Sequence[str] | None = None,
    num_frames: int | None = None,
    channel_order: Literal["rgb", "bgr"] | None = None,
    size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    temporal_downsample: bool | None = None,
    local_mixing: LocalMixing | None = None,
    weights: Weights = "model",
    **options: Any,
) -> HubUniFormerV2:
    """Load a model from a checkpoint of ours, of the official code or of mmaction2, strictly.

    Args:
        source: a file; a folder that `save_pretrained` wrote, or that of a training run, whose best checkpoint is
            taken, else its last; the name of a published model (`list_models`); a hub repository "owner/name" with a
            file of ours; or a state dict. The content decides the format.
        dataset: whose classes the head has, where the checkpoint does not state it.
        labels: class names in the order of the head's rows, instead of the checkpoint's; () for none.
        num_frames: frames of a clip; default: the checkpoint's, see `loading_report`.
        channel_order: of the frames that the weights expect, where the checkpoint does not state it.
        size: (height, width) of a clip in pixels, or the side of a square; positions are interpolated.
        patch_size: pixels; the patch embedding is resampled.
        temporal_downsample: True inflates a 2-D patch embedding to three frames.
        local_mixing: "calibrated" or "differences" adds to a checkpoint's convolutions what changes nothing at first.
        weights: "ema": the averaged weights of a file that has both.
        options: fields of `ModelConfig` that replace what was recognised or assumed, such as `heads` and
            `global_after`. For an image transformer: the arguments of `arm`, `num_classes` at least.

    Returns:
        The model in eval mode, float32, on the CPU, with labels and preprocessing. Its `loading_report` lists what was
        recognised, assumed and changed. Where the file format allows it, the weights are memory maps of the file;
        replace such a file by renaming another, as `save_model` does, and never write into it.

    Raises:
        CheckpointError: nothing of that name; unreadable, of another kind, or not exactly the tensors that its
            architecture needs; or arguments that contradict it.
    """
    size = (size, size) if isinstance(size, int) else size
    architecture = {"patch_size": patch_size, "temporal_downsample": temporal_downsample, "local_mixing": local_mixing}
    clip = {"num_frames": num_frames, "size": size, "channel_order": channel_order}
    try:
        checkpoint = open_checkpoint(source, Known(dataset, num_frames, channel_order), options, weights)
    except NotAVideoModel:
        if "num_classes" not in options:
            raise
        asked = {**architecture, **clip, "labels": labels}
        del asked["channel_order"]
        return arm(source, weights=weights, **{**options, **_given(asked)}).eval()
    name, metadata, state, info = checkpoint
    if isinstance(source, Mapping):  # the model must not share the memory of the given tensors
        state = {key: tensor.clone() for key, tensor in state.items()}
    if labels is not None:
        info = fit_labels(info, labels, name)
    elif metadata.get("format") != FORMAT:
        check_head(info, name)
    return _build(info, state, name, _given({**architecture, "image_size": size}), _given(clip))


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _build(
    info: CheckpointInfo, state: StateDict, source: str, architecture: Mapping[str, Any], clip: Mapping[str, Any]
) -> HubUniFormerV2:
    """A model of a checkpoint, with these fields of its configuration and of its preprocessing replaced."""
    try:
        config, preprocessing = replace(info.config, **architecture), replace(info.preprocessing, **clip)
        state, changes = fit_weights(state, info.config, config)
    except (ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{source}: {error}") from error
    if preprocessing.num_frames != info.preprocessing.num_frames:
        changes.append(
            f"{preprocessing.num_frames} frames instead of {info.preprocessing.num_frames}: no weight changes"
        )
    if config.depth > len(state):  # before a model of any depth is built because a file says so
        raise CheckpointError(f"{source}: {len(state)} tensors, too few for the {config.depth} blocks of its metadata")
    with torch.device("meta"):  # no time spent on random numbers that are replaced at once
        model = HubUniFormerV2(config, preprocessing, info.labels, info.label_note)
    check_fit(state, model.state_dict(), source=source)
    floats = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    model.load_state_dict({key: _aligned(tensor) for key, tensor in floats.items()}, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.origin, model.licence, model.thresholds = info.origin, info.licence, info.thresholds
    model.loading_report = (*info.report, *_converted(state), *changes)
    return model.eval()


def _aligned(tensor: Tensor) -> Tensor:
    """In memory as torch allocates it: other kernels, and other last digits, come with other alignments."""
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def _converted(state: Mapping[str, Tensor]) -> list[str]:
    others = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} - {torch.float32}
    names = sorted(str(dtype).removeprefix("torch.") for dtype in others)
    return [f"{' and '.join(names)} weights turned into float32"] if others else []


def load_weights(
    model: nn.Module,
    state: Mapping[str, Any],
    *,
    source: str = "the given weights",
    weights: Weights = "model",
) -> None:
    """Copy weights in our own, the official or mmaction2's names into a model, strictly.

    Args:
        model: receives the weights; may be wrapped as for `Predictor`. Its `loading_report` gets lines on prefixes that
            were taken off.
        state: the state dict, or a dictionary around it that a training program saved; its keys decide the format.
        source: its name in errors.
        weights: as of `load_model`.

    Raises:
        CheckpointError: unknown names, or tensors missing, unexpected or of another shape.
    """
    found = unwrap(state, source, weights)
    _, ours, renamed = rename_video_keys(found.tensors, source, found.weights)
    plain = plain_model(model)
    check_fit(ours, plain.state_dict(), source=source)
    plain.load_state_dict(ours)
    plain.loading_report += (*found.report, *renamed)


def arm(
    source: ImageSource,
    *,
    num_classes: int,
    layout: Layout = "scene",
    labels: Sequence[str] | None = None,
    num_frames: int | None = None,
    size: int | tuple[int, int] | None = None,
    mean: Constants | None = None,
    std: Constants | None = None,
    weights: Weights = "model",
    **options: Any,
) -> HubUniFormerV2:
    """Turn an image transformer into a video model.

    Until it is trained, each frame embedding (the class token, or pooled patches) is exactly that of the image model
    (section 3 of the paper). docs/image_transformers.md lists the families that are known, and what is assumed of each.

    Args:
        source: a file of weights; a folder or a repository of the hub ("owner/name") with its configuration; a state
            dict; or a live module of `timm` or `transformers`. Heads, text towers and decoders are left out.
        num_classes: classes of the new head.
        layout: "scene" or "temporal", see `layout_options`.
        labels: class names in the order of the new head; default: none.
        num_frames: frames of a clip; default: 8.
        size: (height, width) of a clip in pixels, or the side of a square; default: the image model's own.
            Positions are interpolated.
        mean, std: of the channels in [0, 1] that the image model was trained with; default: from its configuration,
            else the usual ones of its family.
        weights: as of `load_model`.
        options: fields of `ModelConfig`. Those of the image transformer replace what is assumed (`heads=16`,
            `image_size=(224, 320)` that its positions are for) or change it (`pool="mean"`, `post_norm=False`,
            `patch_size=32` by resampling); the others replace those of the layout.

    Returns:
        The model in train mode, float32; its `loading_report` lists what was recognised, assumed, changed, left out.

    Raises:
        CheckpointError: unreadable, no image transformer of a known family, or not exactly its tensors.
        ValueError: options that contradict each other.
    """
    found, hints, name = read_image_source(source, weights)
    given = {key: value for key, value in options.items() if key in IMAGE_FIELDS}
    image = read_image_model(found.tensors, hints, source=name, weights=found.weights, **given)
    clip_size = (size, size) if isinstance(size, int) else size or image.config.image_size
    video = {key: value for key, value in options.items() if key not in IMAGE_FIELDS}
    fields = {"num_classes": num_classes, **layout_options(layout, image.config.depth), **video}
    config = replace(image.config, **{**fields, "image_size": clip_size})
    frames = 8 if num_frames is None else num_frames
    preprocessing = Preprocessing(num_frames=frames, size=clip_size, mean=mean or image.mean, std=std or image.std)
    model = HubUniFormerV2(config, preprocessing, labels or ())
    fitted, changes = fit_weights(image.state, image.config, config)
    check_fit(fitted, _image_tensors(model), source=name)
    load_image_weights(model, fitted)
    model.loading_report = (*image.report, *found.report, *changes, *_converted(fitted))
    return model


def _image_tensors(model: UniFormerV2) -> StateDict:
    """The tensors of an armed model that its image transformer has too: those of the backbone without local blocks."""
    return {key: value for key, value in model.state_dict().items() if re.match(r"backbone\.(?!.*\.local\d\.)", key)}


def resolve_model(
    model: str | Path | nn.Module, *, device: str = "auto", head: str | None = None, **options: Any
) -> UniFormerV2:
    """A checkpoint or a live model as a model on a device; its mode is left as it is (eval for checkpoints).

    Args:
        model: a file, a folder (of a run, or of `save_pretrained`), a published name or a hub repository, as for
            `load_model`; or a live model, which torch.compile, DataParallel or DistributedDataParallel may wrap.
        device: a name that torch knows; "auto": a checkpoint goes to the GPU where there is one, a live model stays.
        head: "kinetics400", "kinetics600" or "kinetics700": only these classes of a Kinetics-710 head, see `map_head`.
        options: of `load_model`; a live model is loaded already.

    Raises:
        RecipeError: the device is not available here.
        CheckpointError: as `load_model` and `map_head`.
        TypeError: a module that is no UniFormerV2.
    """
    live = isinstance(model, nn.Module)
    target = None if live and device == "auto" else pick_device(device)
    resolved = _checked(plain_model(model)) if isinstance(model, nn.Module) else load_model(model, **options)
    if head is not None:
        resolved = map_head(resolved, head)
    return resolved if target is None else resolved.to(target)


def _checked(model: UniFormerV2) -> UniFormerV2:
    """Raises CheckpointError for a head that was replaced without the rest of the model."""
    rows, classes, labels = len(model.head.linear.weight), model.config.num_classes, len(model.labels)
    if rows != classes or labels not in (0, rows):
        raise CheckpointError(
            f"the head of the model has {rows} classes, its config {classes}, and it has {labels} labels; with a head, "
            "set model.config = dataclasses.replace(model.config, num_classes=...) and model.labels = (...)"
        )
    return model

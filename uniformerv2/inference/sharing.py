"""Clips out of frames that are encoded once, however many clips they are in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from uniformerv2.model.config import ModelConfig
from uniformerv2.model.uniformerv2 import ClipFeatures, EncodedFrames, UniFormerV2


def sharing_obstacle(config: ModelConfig) -> str:
    """Why clips cannot share the encoding of a frame, in a few words; empty where they can."""
    if config.local_blocks != "none":
        return "local UniBlocks mix each frame with its neighbours in the clip"
    if config.temporal_downsample:
        return "the stem joins each frame with its neighbours in the clip"
    return ""


def sharing_report(config: ModelConfig) -> str:
    """How windows that overlap are computed, in a line."""
    obstacle = sharing_obstacle(config)
    return f"every window is computed whole: {obstacle}" if obstacle else "each frame is encoded once"


class SharedFrames:
    """Frames of a video from which clips are put together.

    Where the image transformer sees each frame by itself, a frame is encoded once, and a clip costs no more than its
    global stages. Elsewhere a frame's tokens depend on the clip that it is in, so every clip is computed whole. The
    result is that of `UniFormerV2.forward_features` either way.

    Args:
        model: in eval mode; on frames of one size.
    """

    def __init__(self, model: UniFormerV2) -> None:
        self._model = model
        self._shares = not sharing_obstacle(model.config)
        self._encoded: dict[int, EncodedFrames] = {}
        self._frames: dict[int, Tensor] = {}  # (3, height, width), where nothing can be shared

    def __len__(self) -> int:
        """How many frames are held."""
        return len(self._encoded) or len(self._frames)

    def add(self, frames: Mapping[int, Tensor]) -> None:
        """Take in frames by their numbers; those that are held already are not encoded again.

        Args:
            frames: (3, height, width) each, as in a clip: uint8 RGB, or normalised floats.
        """
        if not self._shares:
            self._frames.update(frames)
            return
        new = [number for number in frames if number not in self._encoded]
        if new:
            # (3, height, width) each -> (1, 3, frames, height, width)
            encoded = self._model.encode(torch.stack([frames[number] for number in new], dim=1)[None])
            self._encoded.update(zip(new, _apart(encoded), strict=True))

    def clip(self, numbers: Sequence[int]) -> ClipFeatures:
        """What the model says of the clip of these frames, in this order; a number may come more than once."""
        if self._shares:
            return self._model.aggregate(_together([self._encoded[number] for number in numbers]))
        return self._model.forward_features(torch.stack([self._frames[number] for number in numbers], dim=1)[None])

    def drop_before(self, number: int) -> None:
        """Let go of all frames with lower numbers."""
        for held in (self._encoded, self._frames):
            for old in [one for one in held if one < number]:
                del held[old]


def classify_shared(model: UniFormerV2, frames: Tensor, clips: Tensor) -> Tensor:
    """Classify clips that have frames in common; each frame is encoded once.

    Args:
        model: one without `sharing_obstacle`, in eval mode.
        frames: (3, frames, height, width), as in a clip: uint8 RGB, or normalised floats.
        clips: int64 (clips, frames of a clip): which of the frames.

    Returns:
        Logits (clips, classes), as the model gives them of whole clips.
    """
    encoded = model.encode(frames[None])
    # (1, frames, ...) -> (clips, frames of a clip, ...)
    stages = tuple(tokens[0, clips] for tokens in encoded.stages)
    return model(EncodedFrames(stages, encoded.frame_embeddings[0, clips], encoded.layout))


def _apart(encoded: EncodedFrames) -> list[EncodedFrames]:
    """A clip of n frames -> n clips of one."""
    parts = zip(*(tokens.split(1, dim=1) for tokens in (encoded.frame_embeddings, *encoded.stages)), strict=True)
    return [EncodedFrames(tuple(stages), embedding, encoded.layout) for embedding, *stages in parts]


def _together(encoded: Sequence[EncodedFrames]) -> EncodedFrames:
    """The clips of one frame each -> one clip."""
    stages = tuple(torch.cat(tokens, dim=1) for tokens in zip(*(one.stages for one in encoded), strict=True))
    return EncodedFrames(stages, torch.cat([one.frame_embeddings for one in encoded], dim=1), encoded[0].layout)

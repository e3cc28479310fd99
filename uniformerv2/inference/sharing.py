"""Clips that share frames: each frame is encoded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from uniformerv2.model.config import ModelConfig
from uniformerv2.model.uniformerv2 import ClipFeatures, EncodedFrames, UniFormerV2


def sharing_obstacle(config: ModelConfig) -> str:
    """Why clips cannot share encoded frames, in a few words; empty where they can."""
    if config.local_blocks != "none":
        return "local UniBlocks mix each frame with its neighbours in the clip"
    if config.temporal_downsample:
        return "the stem joins each frame with its neighbours in the clip"
    return ""


def sharing_report(config: ModelConfig) -> str:
    """How overlapping windows are computed, in a line."""
    obstacle = sharing_obstacle(config)
    return f"every window is computed whole: {obstacle}" if obstacle else "each frame is encoded once"


class SharedFrames:
    """Frames of a video, from which clips are taken.

    Where the image transformer encodes each frame by itself, it does so once, and a clip costs its global stages.
    Elsewhere the tokens of a frame depend on the clip, and every clip is computed whole. The result is that of
    `UniFormerV2.forward_features` either way.

    Args:
        model: in eval mode; all frames have one size.
    """

    def __init__(self, model: UniFormerV2) -> None:
        self._model = model
        self._shares = not sharing_obstacle(model.config)
        self._encoded: dict[int, EncodedFrames] = {}
        self._frames: dict[int, Tensor] = {}  # (3, height, width), where they cannot be shared

    def __len__(self) -> int:
        """How many frames are held."""
        return len(self._encoded) or len(self._frames)

    def add(self, frames: Mapping[int, Tensor]) -> None:
        """Add frames by their numbers; frames that are held already are not encoded again.

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
            self._encoded.update(zip(new, _split_frames(encoded), strict=True))

    def clip(self, numbers: Sequence[int]) -> ClipFeatures:
        """The features of the clip of these frames, in this order; a number may occur more than once."""
        return self.clips([numbers])

    def clips(self, numbers: Sequence[Sequence[int]]) -> ClipFeatures:
        """The same of several clips of equal length."""
        if self._shares:
            encoded = [_joined([self._encoded[number] for number in clip], dim=1) for clip in numbers]
            return self._model.aggregate(_joined(encoded, dim=0))
        clips = [torch.stack([self._frames[number] for number in clip], dim=1) for clip in numbers]
        return self._model.forward_features(torch.stack(clips))

    def scores(self, numbers: Sequence[int]) -> Tensor:
        """Probabilities (classes) of the clip of these frames, float32."""
        return self._model.probabilities(self._model.head(self.clip(numbers).pooled)[0].float())

    def drop_before(self, number: int) -> None:
        """Forget all frames with lower numbers."""
        for held in (self._encoded, self._frames):
            for old in [older for older in held if older < number]:
                del held[old]


def classify_shared(model: UniFormerV2, frames: Tensor, clips: Tensor) -> Tensor:
    """Classify clips that have frames in common; each frame is encoded once.

    Args:
        model: without `sharing_obstacle`, in eval mode.
        frames: (3, frames, height, width), as in a clip: uint8 RGB, or normalised floats.
        clips: int64 (clips, frames of a clip): which of the frames.

    Returns:
        Logits (clips, classes), as of whole clips.
    """
    encoded = model.encode(frames[None])
    # (1, frames, ...) -> (clips, frames of a clip, ...)
    stages = tuple(tokens[0, clips] for tokens in encoded.stages)
    return model(EncodedFrames(stages, encoded.frame_embeddings[0, clips], encoded.layout))


def _split_frames(encoded: EncodedFrames) -> list[EncodedFrames]:
    """A clip of n frames -> n clips of one frame."""
    parts = zip(*(tokens.split(1, dim=1) for tokens in (encoded.frame_embeddings, *encoded.stages)), strict=True)
    return [EncodedFrames(tuple(stages), embedding, encoded.layout) for embedding, *stages in parts]


def _joined(encoded: Sequence[EncodedFrames], *, dim: int) -> EncodedFrames:
    """Frames of one clip (dim 1), or clips (dim 0), one after the other."""
    stages = tuple(torch.cat(tokens, dim) for tokens in zip(*(part.stages for part in encoded), strict=True))
    return EncodedFrames(stages, torch.cat([part.frame_embeddings for part in encoded], dim), encoded[0].layout)

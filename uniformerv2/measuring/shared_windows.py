"""Embeddings of windows that have frames in common, each of which is encoded once."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import torch
from torch import Tensor

from uniformerv2.inference.parts import in_parts
from uniformerv2.inference.sharing import SharedFrames, sharing_obstacle
from uniformerv2.measuring.window_reading import LAST, WindowBatch
from uniformerv2.model.config import ModelConfig
from uniformerv2.model.uniformerv2 import ClipFeatures, UniFormerV2
from uniformerv2.video.clips import Windows


def windows_share(windows: Windows, config: ModelConfig) -> bool:
    """Whether windows overlap, and the model encodes each frame by itself."""
    overlap = windows.seconds is not None and (windows.stride_seconds or windows.seconds) < windows.seconds
    return overlap and not sharing_obstacle(config)


@dataclass
class _Video:
    """What is known of a video between two of its batches."""

    encoded: SharedFrames
    first_batch: dict[int, int] = field(default_factory=dict)  # of each frame that may come again
    passed_over: dict[int, dict[int, Tensor]] = field(default_factory=dict)  # by batch: frames that were new in it

    def note(self, batch: WindowBatch) -> int:
        """Note the frames of a batch; returns its number."""
        number = sys.maxsize if batch.item[1] == LAST else batch.item[1]
        for frame in (frame for clip in batch.frames_of for frame in clip):
            self.first_batch.setdefault(frame, number)
        return number

    def forget_before(self, frame: int) -> None:
        """Windows begin one after the other, so none has earlier frames from here on."""
        self.encoded.drop_before(frame)
        self.first_batch = {later: number for later, number in self.first_batch.items() if later >= frame}
        oldest = min(self.first_batch.values())
        self.passed_over = {number: frames for number, frames in self.passed_over.items() if number >= oldest}


class SharedWindows:
    """Embeds the windows of videos, batch after batch.

    The frames that are new in a batch are encoded together. A run that goes on in the middle of a video encodes those
    of the last batches before in the same way, so that it computes the same numbers. What is held between two batches
    are the encoded frames that the next window may have.

    Args:
        model: in eval mode, for which `windows_share`.
    """

    def __init__(self, model: UniFormerV2) -> None:
        self._model = model
        self._videos: dict[int, _Video] = {}  # by group

    def embed(self, batch: WindowBatch, clips: Tensor) -> list[ClipFeatures]:
        """The features of a batch of a divided video, in parts that fit into memory.

        Args:
            batch: those of a video come in order.
            clips: of the batch, on the device of the model.
        """
        video, frames = self._video(batch), _frames(batch, clips)
        video.note(batch)
        wanted = {video.first_batch[frame] for frame in frames}
        for number in sorted(wanted & video.passed_over.keys()):
            video.encoded.add(video.passed_over[number])
        video.passed_over.clear()

        def compute(which: Tensor) -> ClipFeatures:
            chosen = [batch.frames_of[clip] for clip in which.tolist()]
            video.encoded.add({frame: frames[frame] for clip in chosen for frame in clip})
            return video.encoded.clips(chosen)

        found = in_parts(compute, torch.arange(len(clips)), len(clips), by=self._model)
        video.forget_before(min(batch.frames_of[-1]))
        return found

    def pass_over(self, batch: WindowBatch) -> None:
        """Note a batch whose result is there already."""
        if batch.clips is not None:
            video = self._video(batch)
            number = video.note(batch)
            frames = _frames(batch, batch.clips.clone())  # its memory is used again
            video.passed_over[number] = {f: frames[f] for f in frames if video.first_batch[f] == number}
            video.forget_before(min(batch.frames_of[-1]))

    def _video(self, batch: WindowBatch) -> _Video:
        group, number = batch.item
        video = self._videos.get(group) or _Video(SharedFrames(self._model))
        self._videos[group] = video
        if number == LAST:
            del self._videos[group]
        return video


def _frames(batch: WindowBatch, clips: Tensor) -> dict[int, Tensor]:
    """The frames of a batch by their numbers, in order."""
    places = {frame: (clip, place) for clip, frames in enumerate(batch.frames_of) for place, frame in enumerate(frames)}
    return {frame: clips[clip, :, place] for frame, (clip, place) in sorted(places.items())}

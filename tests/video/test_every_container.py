"""Frames by index are those of a plain decode: of drawn files of many containers and codecs, and with hostile times.

Some of each; `benchmarks/fuzz_media.py` draws hundreds.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from media import TIMES, Decoded, Drawing, decode, draw, retimed
from uniformerv2.video import groups
from uniformerv2.video.reader import VideoReader

FILES = [
    Drawing("mp4", "libx264", 30, b_frames=3),
    Drawing("mp4", "libx264", 30, b_frames=1, irregular=True, quarter_turns=3),
    Drawing("mp4", "libx265", 20, b_frames=3, sound=True),
    Drawing("mp4", "libsvtav1", 12),
    Drawing("mov", "prores_ks", 10),
    Drawing("mov", "mjpeg", 10, fragments=True),
    Drawing("3gp", "h263", 20, 128, 96),
    Drawing("matroska", "libx264", 30, b_frames=3, sound=True),
    Drawing("matroska", "ffv1", 12, irregular=True),
    Drawing("webm", "libvpx-vp9", 20, pixels="yuva420p"),
    Drawing("mpegts", "mpeg2video", 30, b_frames=3, sound=True),
    Drawing("mpegts", "libx264", 30, b_frames=3),
    Drawing("mpegts", "libx265", 30, group=12, b_frames=1),
    Drawing("mp4", "libx264", 30, b_frames=3, options="x264-params=interlaced=1"),
    Drawing("webm", "libvpx", 30, options="auto-alt-ref=1,lag-in-frames=10,arnr-maxframes=3"),
    Drawing("mpeg", "mpeg1video", 20, b_frames=1),
    Drawing("avi", "mpeg4", 20, b_frames=1),
    Drawing("3g2", "mpeg4", 34, 80, 68, group=4, b_frames=1, irregular=True, options="flags=+ilme+ildct"),
    Drawing("avi", "ffv1", 10, 52, 32, pixels="yuva420p"),
    Drawing("asf", "wmv2", 20),
    Drawing("flv", "flv", 20),
    Drawing("flv", "libx264", 20, b_frames=1),
    Drawing("ivf", "libvpx", 12),
    Drawing("nut", "mpeg4", 20, b_frames=3),
    Drawing("mxf", "mpeg2video", 20, b_frames=1),
    Drawing("gif", "gif", 12),
    Drawing("apng", "apng", 12),
    Drawing("h264", "libx264", 20, b_frames=3),
    Drawing("image2pipe", "png", 10),
]
HOSTILE = [
    Drawing("mp4", "libx264", 24, b_frames=1),
    Drawing("matroska", "libx264", 24),
    Drawing("webm", "libvpx", 24),
    Drawing("flv", "flv", 24),
    Drawing("mpegts", "mpeg2video", 24, b_frames=1),
]
UNWRITABLE = {("mp4", "missing")}


def assert_every_question_is_answered_by(decoded: Decoded, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count, dice = len(decoded.images), random.Random(0)
    frames = torch.from_numpy(np.stack(decoded.images)).permute(0, 3, 1, 2)
    some = sorted(dice.sample(range(count), min(5, count)))
    spread = [round(i * (count - 1) / 3) for i in range(4)]
    questions = [[*range(count)], [0], [count - 1], spread, some, [*some[::-1], some[0], some[-1]]]
    for kept_bytes, threads in ((groups.KEPT_BYTES, 0), (groups.KEPT_BYTES, 1), (0, 1), (0, 2)):
        monkeypatch.setattr(groups, "KEPT_BYTES", kept_bytes)
        monkeypatch.setattr(groups, "WORTH_A_THREAD", 0)
        for indices in questions:
            with VideoReader(path, threads=threads) as reader:
                assert len(reader) == count
                for _ in range(2):
                    assert torch.equal(reader.frames_at(indices), frames[indices]), (kept_bytes, threads, indices)
                assert len(reader) == count


@pytest.mark.parametrize("drawing", FILES, ids=str)
def test_frames_of_every_container_are_those_of_a_plain_decode(
    drawing: Drawing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"video.{drawing.container}"
    path.write_bytes(draw(drawing))
    decoded = decode(path, quarter_turns=drawing.quarter_turns)
    assert len(decoded.images) == drawing.frames
    assert_every_question_is_answered_by(decoded, path, monkeypatch)


@pytest.mark.parametrize(
    ("drawing", "kind"),
    [
        pytest.param(drawing, kind, id=f"{drawing.container}, {kind}")
        for drawing in HOSTILE
        for kind in ["appended", *TIMES]
        if (drawing.container, kind) not in UNWRITABLE
    ],
)
def test_frames_by_index_heed_no_times(
    drawing: Drawing, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"video.{drawing.container}"
    path.write_bytes(retimed(draw(drawing), drawing.container, kind, random.Random(0)))
    decoded = decode(path)
    assert len(decoded.images) > 1
    assert_every_question_is_answered_by(decoded, path, monkeypatch)

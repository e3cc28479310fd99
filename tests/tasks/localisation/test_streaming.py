"""Spans of a stream are those of the film, told in time."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from drawn_films import RATE, Trained, drawn_stretches, write_film
from helpers import Run, assert_refused, noise, write_video
from uniformerv2 import LiveFrames, Localiser, StreamLocaliser
from uniformerv2.errors import CheckpointError, RecipeError, VideoError
from uniformerv2.spans.span import Span
from uniformerv2.stream import StreamEvent
from uniformerv2.stream_spans import SpanEvent, _LiveWindows
from uniformerv2.tasks.localisation.decoding import FilmTimes
from uniformerv2.tasks.localisation.finding import find_spans
from uniformerv2.tasks.localisation.pyramid import Found, SpanHead, places, receptive_field
from uniformerv2.tasks.localisation.recipe import PyramidConfig
from uniformerv2.tasks.localisation.streaming import SpanStream, Told, divided_delay
from uniformerv2.video.clips import Windows
from uniformerv2.video.live import LiveFrame, live_frames
from uniformerv2.video.reader import VideoReader

SMALL = PyramidConfig(width=16, heads=2, radius=2, blocks=1, levels=3, dropout=0.0)
LABELS = ("run", "jump")
TIMES = FilmTimes(first=1.0, stride=0.5, duration=math.inf)


def pushed(film: Path) -> LiveFrames:
    """A source in which all frames of a film wait already, with their times."""
    with VideoReader(film) as reader:
        frames = reader.frames_at(range(len(reader)))
    live = LiveFrames(queue_size=len(frames))
    for number, frame in enumerate(frames):
        live.push(frame, time=number / RATE)
    live.end()
    return live


def ended(events: list[SpanEvent]) -> list[SpanEvent]:
    return [event for event in events if event.kind == "ended"]


def lively_head(config: PyramidConfig = SMALL, *, seed: int = 0) -> SpanHead:
    """A head that finds spans in noise: of a few places, sure and not too long."""
    torch.manual_seed(seed)
    head = SpanHead(config, embedding_width=6, num_classes=len(LABELS)).eval()
    torch.nn.init.normal_(head.classes.weight, std=0.3)
    torch.nn.init.normal_(head.distances.weight, std=0.1)
    return head


def told_of(head: nn.Module, embeddings: Tensor, *, delay: int, threshold: float) -> list[tuple[int, Told]]:
    """What is told, with how many windows were known; the head sees all that it can before a place."""
    options: Any = {"delay_windows": delay, "context_windows": 10**6, "threshold": threshold}
    stream = SpanStream(head, LABELS, TIMES, **options)  # type: ignore[arg-type]
    news = [(count, told) for count, embedding in enumerate(embeddings, start=1) for told in stream.add(embedding)]
    duration = duration_of(len(embeddings))
    return [*news, *((len(embeddings), told) for told in stream.end(duration))]


def duration_of(windows: int) -> float:
    return TIMES.first + TIMES.stride * (windows - 1) + 1


@torch.inference_mode()
def test_the_head_sees_as_far_as_is_said_and_no_farther() -> None:
    head, middle = lively_head(), 64
    embeddings = torch.randn(1, 2 * middle + 1, 6)
    valid = torch.ones(1, 2 * middle + 1, dtype=torch.bool)
    at_middle = places(2 * middle + 1, SMALL).position == middle
    before = head(embeddings, valid).distances[0, at_middle]
    reach = receptive_field(SMALL)
    for away, same in ((reach + 1, True), (reach, False)):
        found = []
        for side in (-1, 1):
            changed = embeddings.clone()
            changed[0, middle + side * away] += 10 * torch.randn(6)
            found.append(torch.equal(head(changed, valid).distances[0, at_middle], before))
        assert all(found) if same else not all(found)


@pytest.mark.parametrize("seed", range(3))
def test_with_a_delay_as_long_as_the_head_sees_what_ends_is_what_the_film_shows(seed: int) -> None:
    head = lively_head(seed=seed)
    embeddings = torch.randn(400, 6, generator=torch.Generator().manual_seed(seed))
    whole = find_spans(head, embeddings, FilmTimes(1.0, 0.5, duration_of(400)), LABELS)
    threshold = whole[60].score  # enough spans to be compared, and few enough to be apart
    expected = sorted((span.start, span.end, span.label, span.score) for span in whole if span.score >= threshold)
    delay = receptive_field(SMALL) + 8
    told = told_of(head, embeddings, delay=delay, threshold=threshold)
    found = sorted((*attributes(news), news.span.score) for _, news in told if news.kind == "ended")
    assert [row[2] for row in found] == [row[2] for row in expected]
    for column in (0, 1, 3):
        np.testing.assert_allclose([row[column] for row in found], [row[column] for row in expected], atol=1e-4)
    for windows, news in told:
        if news.kind == "ended" and windows < 400:
            newest = TIMES.first + TIMES.stride * (windows - 1)  # the middle of the last window
            assert newest <= news.span.end + delay * TIMES.stride


def attributes(news: Told) -> tuple[float, float, str]:
    return news.span.start, news.span.end, news.span.label


class Says(nn.Module):
    """A head that says what a test wants of single places of the first level, while so many windows are known."""

    def __init__(self, said: dict[int, tuple[float, float, float, range]]) -> None:
        super().__init__()
        self.config, self.said, self.none = SMALL, said, nn.Parameter(torch.zeros(1))

    def forward(self, embeddings: Tensor, valid: Tensor) -> Found:
        windows = embeddings.shape[1]
        count = len(places(windows, SMALL).position)
        logits, distances = torch.full((1, count, 2), -20.0), torch.ones(1, count, 2)
        for place, (score, before, after, known) in self.said.items():
            if place < windows in known:  # before, it would be a place of another level
                logits[0, place, 0] = torch.tensor(score).logit()
                distances[0, place] = torch.tensor([before, after])
        return Found(logits, distances, torch.ones(1, count, dtype=torch.bool))


def kinds(told: list[tuple[int, Told]]) -> list[tuple[int, str, int]]:
    return [(windows, news.kind, news.number) for windows, news in told]


def test_a_span_starts_when_its_place_is_known_and_ends_when_it_is_over() -> None:
    """A delay of four windows: a look after each, which waits for three."""
    assert divided_delay(4) == (1, 3)
    told = told_of(Says({6: (0.9, 3.0, 3.0, range(100))}), torch.zeros(30, 6), delay=4, threshold=0.5)
    # window 6 is the tenth but three, window 9 the thirteenth but three
    assert kinds(told) == [(10, "started", 0), (13, "ended", 0)]
    assert told[1][1].span == Span(1 + 3 * 0.5, 1 + 9 * 0.5, "run", pytest.approx(0.9))
    assert divided_delay(16) == (4, 12)
    late = told_of(Says({6: (0.9, 3.0, 3.0, range(100))}), torch.zeros(30, 6), delay=16, threshold=0.5)
    assert kinds(late) == [(20, "started", 0), (24, "ended", 0)]  # a look after every fourth


def test_what_lasts_to_the_end_of_the_stream_ends_there() -> None:
    told = told_of(Says({6: (0.9, 3.0, 90.0, range(100))}), torch.zeros(12, 6), delay=4, threshold=0.5)
    assert kinds(told) == [(10, "started", 0), (12, "ended", 0)]
    assert told[1][1].span.end == duration_of(12)


def test_what_later_windows_show_replaces_what_was_told() -> None:
    """A start is withdrawn, or belongs to the surer span that takes its place."""
    gone = told_of(Says({6: (0.9, 3.0, 30.0, range(15))}), torch.zeros(20, 6), delay=4, threshold=0.5)
    assert kinds(gone) == [(10, "started", 0), (15, "withdrawn", 0)]
    better = Says({6: (0.8, 3.0, 5.0, range(100)), 8: (0.9, 4.5, 4.0, range(100))})
    told = told_of(better, torch.zeros(20, 6), delay=4, threshold=0.5)
    assert kinds(told) == [(10, "started", 0), (16, "ended", 0)]
    assert attributes(told[1][1]) == (1 + 3.5 * 0.5, 1 + 12 * 0.5, "run")


def test_what_would_be_told_too_late_is_not_told() -> None:
    """A score that rises only long after the span is over."""
    told = told_of(Says({6: (0.9, 3.0, 3.0, range(20, 100))}), torch.zeros(40, 6), delay=4, threshold=0.5)
    assert not told


def test_what_is_held_does_not_grow_with_the_stream() -> None:
    stream = SpanStream(lively_head(), LABELS, TIMES, delay_windows=8, context_windows=16, threshold=0.05)
    held = []
    for embedding in torch.randn(2000, 6):
        stream.add(embedding)
        held.append([len(one) for one in (stream._embeddings, stream._candidates.score, stream._open, stream._ended)])
    early, late = (np.array(held[first : first + 500]).max(0) for first in (500, 1500))
    assert early[0] == late[0] == 2 * 16 + 8 + 3  # and what is too little to be dropped: a place of the last level
    assert (late <= 1.5 * early).all()


# --- of frames


@pytest.mark.parametrize(("seconds", "stride"), [(2.0, 0.5), (1.3, 0.4), (1.0, 1.5), (30.0, 1.0)])
@pytest.mark.parametrize("kept", [1.0, 0.4])
def test_windows_of_a_stream_are_those_of_the_film(seconds: float, stride: float, kept: float, tmp_path: Path) -> None:
    """At an even frame rate, and with frames left out irregularly."""
    dice = np.random.default_rng(0)
    times = [100 * number for number in range(83) if number in (0, 82) or dice.random() < kept]
    film = write_video(tmp_path / "film.mkv", noise(len(times)), times=times)
    windows = Windows(seconds, stride)
    with VideoReader(film) as reader:
        plan = windows.plan(reader, 4)
    live = _LiveWindows(windows, 4)
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    found = [
        window.numbers
        for number, time in enumerate(times)
        for window in live.add(LiveFrame(image, number, time / 1000, 0.0), image)
    ]
    assert len(found) < len(plan.indices)
    found += [window.numbers for window in live.rest()]
    assert found == [tuple(indices) for indices in plan.indices.tolist()]
    assert live.duration == pytest.approx(plan.end[-1]) or stride > seconds


def test_spans_of_a_stream_are_those_of_the_film(trained: Trained, tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    write_film(film, drawn_stretches(300, spans=8))
    expected = Localiser(trained.result.last).localise(film, threshold=0.3, workers=0)
    assert len(expected) >= 5
    events: list[StreamEvent] = []
    localiser = StreamLocaliser(trained.result.last, delay_seconds=90.5)
    assert localiser.exact_delay_seconds == 90.5
    found = list(localiser.run(pushed(film), on_event=events.append))
    assert sorted((event.label, event.start, event.end, event.score) for event in ended(found)) == [
        (label, pytest.approx(start, abs=1e-3), pytest.approx(end, abs=1e-3), pytest.approx(score, abs=1e-3))
        for label, start, end, score in sorted((span.label, span.start, span.end, span.score) for span in expected)
    ]
    assert [event.kind for event in events] == ["end"]


def test_a_short_delay_finds_them_while_the_film_runs(trained: Trained, tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    write_film(film, drawn_stretches(300, spans=8))
    expected = Localiser(trained.result.last).localise(film, threshold=0.3, workers=0)
    localiser = StreamLocaliser(trained.result.last)
    assert localiser.delay_seconds == 8 * 0.25 + 0.5
    assert any("2.5 s" in line and "90.5 s" in line for line in localiser.report)
    found = list(localiser.run(pushed(film)))
    over = sorted(ended(found), key=lambda event: event.start)
    assert [event.label for event in over] == [span.label for span in sorted(expected, key=lambda span: span.start)]
    for event, span in zip(over, sorted(expected, key=lambda span: span.start), strict=True):
        assert (event.start, event.end) == (pytest.approx(span.start, abs=0.5), pytest.approx(span.end, abs=0.5))
    first = [event for event in found if event.kind == "started"]
    assert {event.number for event in first} >= {event.number for event in over}
    assert all(event.end is None for event in first)
    assert Counter(event.number for event in first).most_common(1)[0][1] == 1
    started = {event.number: event.time for event in first}
    assert all(started[event.number] <= event.time for event in over)
    assert sum(event.time <= event.end + 2.5 + 2 / RATE for event in over if event.end) >= len(over) - 1


def test_no_more_frames_are_held_than_those_of_a_window(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = tmp_path / "film.mp4"
    write_film(film, drawn_stretches(5, spans=3))
    held, add = [], _LiveWindows.add

    def watched(self: _LiveWindows, frame: LiveFrame, picture: Tensor) -> Iterator[Any]:
        held.append(len(self._held))
        return add(self, frame, picture)

    monkeypatch.setattr(_LiveWindows, "add", watched)
    list(StreamLocaliser(trained.result.last).run(pushed(film)))
    assert max(held) <= RATE + 2  # a window of a second
    assert len(held) > 100


def test_what_a_stream_of_spans_refuses(trained: Trained) -> None:
    model = trained.result.last
    with pytest.raises(CheckpointError, match="not a localiser"):
        StreamLocaliser(trained.model)
    with pytest.raises(RecipeError, match=r"delay_seconds must be at least 0\.75"):
        StreamLocaliser(model, delay_seconds=0.7)
    with pytest.raises(RecipeError, match="delay_seconds must be positive, got nan"):
        StreamLocaliser(model, delay_seconds=math.nan)
    with pytest.raises(RecipeError, match=r"threshold must be in \(0, 1\], got 0"):
        next(StreamLocaliser(model).run([], threshold=0.0))
    with pytest.raises(VideoError, match="ended after 0 frames"):
        list(StreamLocaliser(model).run([]))


def test_the_command_tells_starts_and_ends(
    trained: Trained, tmp_path: Path, uniformerv2: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uniformerv2.video.live.Pace.hold", lambda pace, time: None)  # all at once
    monkeypatch.setattr(
        "uniformerv2.stream.live_frames",
        lambda source, **options: live_frames(source, **{**options, "queue_size": 1000}),
    )
    film = tmp_path / "film.mp4"
    write_film(film, drawn_stretches(300, spans=3))
    command = ["stream", trained.result.last.parent, film, "--delay-seconds", 3, "--threshold", 0.4]
    status, output, errors = uniformerv2(*command, "--json")
    assert status == 0
    lines = [json.loads(line) for line in output.splitlines()]
    expected = list(StreamLocaliser(trained.result.last, delay_seconds=3).run(pushed(film), threshold=0.4))
    assert [line["kind"] for line in lines] == [*(event.kind for event in expected), "end"]
    for line, event in zip(lines[:-1], expected, strict=True):
        assert (line["number"], line["label"]) == (event.number, event.label)
        assert (line["start"], line["time"]) == (pytest.approx(event.start), pytest.approx(event.time))
        assert line["end"] == (None if event.end is None else pytest.approx(event.end))
    assert "an end is told 3 s after it at most; with a delay of 90.5 s" in errors
    status, output, errors = uniformerv2(*command)
    assert [line.split()[2] for line in output.splitlines()] == [event.kind for event in expected]
    assert "0 dropped" in errors
    assert_refused(uniformerv2(*command, "--top-k", 2), "--top-k is not for the checkpoints of localisers")
    assert_refused(uniformerv2("stream", trained.model, film, "--delay-seconds", 3), "--delay-seconds is for")

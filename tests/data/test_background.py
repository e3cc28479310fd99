"""Windows of background lie where no span does, as many as asked for, the same for the same seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from drawn_films import frames_of, write_film
from helpers import write_video
from uniformerv2.data.annotations import Annotation
from uniformerv2.data.background import with_background
from uniformerv2.errors import AnnotationError
from uniformerv2.video.reader import VideoReader


def frames_shown(row: Annotation) -> set[int]:
    """Of its file, by number, as training and evaluation take them."""
    with VideoReader(row.path) as reader:
        first, count = reader.frames_between(row.start, row.end)
        return {*range(first, first + count)}


def drawn(rows: Sequence[Annotation], share: float, seed: int = 0) -> list[Annotation]:
    """The windows of these rows, without them."""
    return with_background(rows, [], share=share, seed=seed)[0][len(rows) :]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Annotation]:
    """Spans of 1.5 to 3 s in two films of ten frames a second, with pauses of 2 to 6 s."""
    folder = tmp_path_factory.mktemp("films")
    rows = write_film(folder / "long.mp4", [(None, 60), (0, 20), (None, 60), (1, 15), (None, 60)])
    return rows + write_film(folder / "short.mp4", [(0, 30), (None, 60), (1, 20)])


def test_they_have_no_frame_of_any_span_and_do_not_overlap(films: list[Annotation]) -> None:
    for seed in range(10):
        windows = drawn(films, 0.6, seed)
        assert len(windows) == 6  # of 6 + 4 rows
        for window in windows:
            assert not any(frames_shown(window) & frames_shown(row) for row in films if row.path == window.path)
        for path in {row.path for row in films}:
            own = sorted((row.start, row.end) for row in windows if row.path == path)
            assert all(before[1] <= after[0] for before, after in pairwise(own))


def test_they_are_as_long_as_spans_and_films_take_turns(films: list[Annotation]) -> None:
    windows = drawn(films, 0.5)
    lengths = [round(row.end - row.start, 6) for row in windows]
    assert {*lengths} <= {1.5, 2.0, 3.0}
    assert Counter(row.path.stem for row in windows) == {"long": 2, "short": 2}
    assert {(row.label, row.labels) for row in windows} == {("background", ("background",))}


def test_the_seed_decides_them(films: list[Annotation]) -> None:
    assert drawn(films, 0.5, 1) == drawn(films, 0.5, 1) != drawn(films, 0.5, 2)


def test_rows_that_overlap_or_lack_a_time_cover_what_they_say(tmp_path: Path) -> None:
    write_video(tmp_path / "film.mp4", frames_of([(None, 100)]), rate=10)
    spans = [(None, 1.0, "a"), (0.5, 4.0, "b"), (2.0, 3.0, "a"), (7.0, None, "b")]
    rows = [Annotation(tmp_path / "film.mp4", label, start, end) for start, end, label in spans]
    for seed in range(20):
        for window in drawn(rows, 0.5, seed):
            assert 4.0 < window.start < window.end < 7.0


def test_frames_of_a_changing_rate_are_told_by_their_times(tmp_path: Path) -> None:
    """Ten frames a second for three seconds, then one a second until 22 s."""
    times = [*range(0, 3000, 100), *range(3000, 23000, 1000)]
    write_video(tmp_path / "film.mp4", frames_of([(None, len(times))]), times=times)
    rows = [Annotation(tmp_path / "film.mp4", "a", start, end) for start, end in ((3.2, 15.5), (17.0, 18.5))]
    windows = [window for seed in range(10) for window in drawn(rows, 0.5, seed)]
    assert len(windows) == 20
    # the frame of 3 s is shown from then on, and so is that of 18 s until 19 s
    assert {(row.start >= 0 and row.end <= 2.9) or row.start >= 19 for row in windows} == {True}
    assert any(row.start >= 19 for row in windows)
    assert any(row.end < 3 for row in windows)


def test_fewer_are_drawn_where_no_more_fit_and_that_is_told(
    films: list[Annotation], capsys: pytest.CaptureFixture[str]
) -> None:
    rows, _ = with_background(films, [], share=0.9, progress=True)
    assert 6 < len(rows) - len(films) < 36
    assert f"{len(rows) - 4} windows of background from 2 training films, not 36, as no more fit" in (
        " ".join(capsys.readouterr().err.split())
    )


def test_held_out_films_get_theirs_and_are_warned_of_where_there_is_no_room(films: list[Annotation]) -> None:
    training, held_out = ([row for row in films if row.path.stem == stem] for stem in ("long", "short"))
    found = with_background(training, held_out, share=0.5)
    assert [row.path.stem for row in found[0][2:]] == ["long"] * 2
    assert {row.path.stem for row in found[1][2:]} == {"short"}
    whole = [Annotation(held_out[0].path, "red", 0, 11.0)]
    with pytest.warns(UserWarning, match="nothing is held out of background: .*fits between the spans of 1 held-out"):
        assert with_background(training, whole, share=0.5)[1] == whole


def test_a_file_under_two_names_is_one_film(films: list[Annotation], tmp_path: Path) -> None:
    short = [row for row in films if row.path.stem == "short"]
    (tmp_path / "link.mp4").symlink_to(short[0].path)
    rows = [*short, Annotation(tmp_path / "link.mp4", "red", 3.0, 9.0)]
    with pytest.raises(AnnotationError, match="no window as long as the shortest span, 2 s, fits"):
        drawn(rows, 0.5)


def test_a_film_that_cannot_be_read_gives_none(films: list[Annotation], tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_text("no video")
    broken = Annotation(tmp_path / "broken.mp4", "red", 0.0, 2.0)
    assert {row.path.stem for row in drawn([*films, broken], 0.5)} == {"long", "short"}
    with pytest.raises(AnnotationError, match=r"1 of them cannot be read, such as .*broken.mp4"):
        drawn([broken], 0.5)


def test_what_cannot_work_is_an_error_that_says_what_to_do(films: list[Annotation]) -> None:
    first, *others = films
    with pytest.raises(AnnotationError, match=r"none of 1 rows has an end, .* trimmed .* needs films with spans"):
        drawn([replace(first, start=None, end=None)], 0.5)
    with pytest.raises(AnnotationError, match=r"long.mp4: its label 'Background' .* rename it, or leave --background"):
        drawn([replace(first, label="Background"), *others], 0.5)
    with pytest.raises(AnnotationError, match=r"'red' from 6 s to 40 s, but the file lasts 21.5 s.* correct the times"):
        drawn([replace(first, end=40.0)], 0.5)
    with pytest.raises(AnnotationError, match="shortest span, 21 s, fits between the spans of 1 training films"):
        drawn([replace(first, start=0.0, end=21.0)], 0.5)

"""Rows become films with spans, and films are split as a whole."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from helpers import touch
from uniformerv2.data.annotations import Annotation
from uniformerv2.errors import AnnotationError
from uniformerv2.spans.span import Span
from uniformerv2.tasks.localisation.films import Film, films_of, manifest_text, split_films


def test_the_rows_of_a_file_are_its_spans_each_once() -> None:
    film, other = Path("film.mp4"), Path("other.mp4")
    rows = [
        Annotation(film, "run", 1.0, 2.0),
        Annotation(other, ""),
        Annotation(film, "run", 1.0, 2.0),
        Annotation(film, "jump", 1.5, None, other_labels=("wave",)),
    ]
    found = films_of(rows)
    assert [one.path for one in found] == [film, other]
    assert found[0].spans == (Span(1.0, 2.0, "run"), Span(1.5, math.inf, "jump"), Span(1.5, math.inf, "wave"))
    assert found[1].spans == ()
    assert manifest_text(found, Path.cwd()).splitlines()[-2:] == ["film.mp4,wave,1.5,", "other.mp4,,,"]


def test_films_are_held_out_whole_whatever_they_show(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{number}.mp4" for number in range(10)))
    for number in range(10):
        (tmp_path / f"{number}.mp4").write_text(str(number))  # equal files would count as one
    films = films_of(
        Annotation(tmp_path / f"{number}.mp4", label, start, start + 2)
        for number in range(10)
        for label, start in (("run", 0.0), ("jump", 1.0))
    )
    training, held_out = split_films(films, holdout=None, holdout_list=None, seed=0)
    assert (len(training), len(held_out)) == (8, 2)
    assert {film.path for film in training} | {film.path for film in held_out} == {film.path for film in films}
    assert split_films(films, holdout=0, holdout_list=None, seed=0) == (films, [])
    mixed = Film(films[0].path, tuple(Annotation(films[0].path, "run", 0.0, 1.0, side) for side in ("train", "val")))
    with pytest.raises(AnnotationError, match="both trained on and held out"):
        split_films([mixed, *films[1:]], holdout=None, holdout_list=None, seed=0)

"""Work items that processes share and that outlive the processes."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import start_process
from uniformerv2.data.journal import Journal
from uniformerv2.distributed import current_ranks
from uniformerv2.errors import AnnotationError, RecipeError
from uniformerv2.measuring.shared_work import Result, SharedWork, WorkItem, journal_of

ITEMS = 15


def compute(
    journal: Path | None, *, resume: bool = True, identity: dict[str, str] | None = None, limit: int = ITEMS
) -> dict[WorkItem, Result]:
    """Everything there is to do, or so many items of it; a result is text and numbers that JSON keeps bit by bit."""
    with SharedWork(journal, identity or {"weights": "a"}, resume=resume) as work:
        left = [number for number in work.share(ITEMS) if (number,) not in work.done]
        for number in left[:limit]:
            work.add((number,), {"score": random.Random(number).random(), "text": "ä\n"})
        return work.collect()


WHOLE = compute(None)


def items(journal: Path) -> list[list[int]]:
    """Which are written down, in whole lines."""
    with Journal(journal) as opened:
        return [line["item"] for line in opened.records() if "item" in line]


def die_after(adds: int, share: float) -> None:
    """Makes this process end while it adds the next but so many lines to a journal, with a share of it written."""
    add = Journal.add

    def adding(journal: Journal, record: dict[str, Any]) -> None:
        nonlocal adds
        if adds == 0:
            line = json.dumps(record).encode()
            with journal.path.open("ab") as file:
                file.write(line[: int(share * len(line))])
            os.kill(os.getpid(), signal.SIGKILL)
        adds -= 1
        add(journal, record)

    Journal.add = adding  # type: ignore[method-assign]  # of a process that will not come back


def test_killed_at_random_and_resumed_it_gives_what_an_unbroken_run_gives(tmp_path: Path) -> None:
    journal, dice = tmp_path / "journal", random.Random(0)
    known: list[list[int]] = []
    kills = 0
    while len(known) < ITEMS:
        adds, share = dice.randint(0, 3), dice.random()

        def attempt(adds: int = adds, share: float = share) -> None:
            die_after(adds, share)
            compute(journal)

        process = start_process(attempt)
        process.join()
        found = items(journal)
        assert found[: len(known)] == known
        assert len({tuple(item) for item in found}) == len(found), "an item was computed twice"
        kills += process.exitcode == -signal.SIGKILL
        known = found
    assert kills > 3
    assert compute(journal) == WHOLE


def test_processes_share_the_items_and_resume_with_another_number_of_processes(
    start_together: Callable[..., list[Any]], together: Callable[..., list[Any]], tmp_path: Path
) -> None:
    for world in (2, 3):
        assert together(world, lambda: compute(tmp_path / "whole")) == [WHOLE] * world
    journals = [tmp_path / "journal", tmp_path / "journal.1"]

    def killed() -> None:
        die_after(3 + current_ranks().rank, 0.5)
        compute(journals[0])

    for process in start_together(2, killed):
        process.join()
        assert process.exitcode == -signal.SIGKILL
    for rank, journal in enumerate(journals):
        assert items(journal) == [[rank], [rank + 2], [rank + 4]][: 2 + rank]  # the line before them is no item
    assert together(3, lambda: compute(journals[0])) == [WHOLE] * 3
    assert compute(journals[0]) == WHOLE
    assert sum(len(items(journal)) for journal in tmp_path.glob("journal*")) == ITEMS


def test_a_journal_is_of_one_work(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    compute(journal, identity={"weights": "a", "views": "3"}, limit=4)
    before = journal.read_bytes()
    with pytest.raises(RecipeError, match=r"cannot be resumed.* other views \(then 3, now 4\); repeat"):
        compute(journal, identity={"weights": "a", "views": "4"})
    with pytest.raises(RecipeError, match="--resume"):
        compute(journal, identity={"weights": "a", "views": "3"}, resume=False)
    assert journal.read_bytes() == before
    journal.write_bytes(before.partition(b"\n")[0] + b"\n")  # begun, without a result
    assert compute(journal, identity={"weights": "b"}, resume=False) == WHOLE


def test_what_is_wrong_with_a_journal_shows_in_every_process(
    together: Callable[..., list[Any]], tmp_path: Path
) -> None:
    (tmp_path / "journal.1").mkdir()

    def attempt() -> str:
        with pytest.raises(AnnotationError) as caught:
            compute(tmp_path / "journal")
        return str(caught.value)

    first, second = together(2, attempt)
    assert first == second
    assert "journal.1" in first


def test_the_journal_goes_once_everything_is_written(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    with pytest.raises(ZeroDivisionError), journal_of(output) as journal:
        assert len(compute(journal, limit=4)) // 0
    assert journal == tmp_path / "result.json.journal"
    assert len(items(journal)) == 4
    (tmp_path / "result.json.journal.1").touch()
    (tmp_path / "result.json.journal.old").touch()
    with journal_of(output) as journal:
        compute(journal)
        output.write_text("everything")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["result.json", "result.json.journal.old"]


def test_files_that_cannot_be_written_are_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AnnotationError, match="absent"), journal_of(tmp_path / "absent" / "a.json"):
        raise AssertionError
    with pytest.raises(RecipeError, match="two things"), journal_of(tmp_path / "a.json", None, tmp_path / "a.json"):
        raise AssertionError
    monkeypatch.setattr("uniformerv2.measuring.shared_work.find_spec", lambda name: None)
    with pytest.raises(AnnotationError, match=r'pip install "uniformerv2\[data\]"'):  # noqa: SIM117
        with journal_of(tmp_path / "a.json", tmp_path / "a.parquet"):
            raise AssertionError

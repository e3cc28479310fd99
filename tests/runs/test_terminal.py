"""Runs in a terminal."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from runs.written import WriteRun, epoch, history, step
from uniformerv2.runs.folder import read_runs
from uniformerv2.runs.terminal import print_runs


def printed(folders: Sequence[Path], *, width: int = 80, **options: Any) -> str:
    text = io.StringIO()
    print_runs(read_runs(folders), Console(file=text, width=width, **options))
    return text.getvalue()


def rows_of(chart: str, text: str) -> list[str]:
    """The lines of a chart in the terminal, from its top to zero."""
    lines = text.split(f"{chart}")[1].splitlines()[1:]
    return [line.split("│")[1] for line in lines[: next(n for n, line in enumerate(lines) if "└" in line)]]


def test_terminal_draws_the_curves(write_run: WriteRun) -> None:
    records = [step(number, 2.0 - 0.4 * (number - 1)) for number in range(1, 6)]  # 2.0 ... 0.4
    records += [step(6, 0.0), epoch(1, 1.0, 1.0)]
    records[5]["epoch"] = 2
    text = printed([write_run(records=records)], width=43)
    rows = rows_of("training loss", text)
    assert len(rows) == 8
    inner = len(rows[0])
    first_step, last_step = round(inner * 0.2 / 2), round(inner * 1.2 / 2)  # the axis ends with epoch 2
    assert rows[0][first_step - 1 : first_step + 2].strip()  # 2.0 is the top
    assert not rows[0][first_step + 4 :].strip()
    assert rows[7][last_step - 1 : last_step + 1].strip()  # 0.0
    assert not rows[7][: last_step - 3].strip()
    for row in rows:
        assert not row[last_step + 1 :].strip()  # nothing is drawn beyond the last step
    assert text.splitlines()[0].split() == ["1", "run"]
    assert rows_of("held-out top-1, %", text)[0][inner // 2 - 2 : inner // 2].strip()  # 100 %, at half of two epochs


@pytest.mark.parametrize("width", [30, 40, 80, 130])
def test_nothing_is_wider_than_the_terminal(write_run: WriteRun, width: int) -> None:
    first = write_run("a-name-of-a-run-that-is-longer-than-narrow-terminals", history([0.5, 0.625]))
    second = write_run("[bold]second", history([None, 0.75, 1.0]), recipe={"optimization": {"lr": 0.5}})
    text = printed([first, second], width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text  # no escape codes where there is no terminal
    assert "[bold]second" in text
    assert "…" not in text
    for figure in ("2/4", "3/4", "62.5%", "100.0%", "16.0", "0.5 GiB", "0:00:04"):
        assert figure in text


def test_each_curve_carries_the_number_of_its_run(write_run: WriteRun) -> None:
    text = printed([write_run("one", history([0.5] * 4)), write_run("two", history([1.0] * 4))])
    rows = rows_of("held-out top-1, %", text)
    assert "2" in rows[0]
    assert any("1" in row for row in rows[3:5])


def test_terminal_is_coloured(write_run: WriteRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    folders = [write_run("one", history([0.5])), write_run("two", history([0.5]))]
    assert "\x1b[36m" in printed(folders, force_terminal=True, color_system="standard")


def test_output_that_cannot_hold_the_curves(write_run: WriteRun) -> None:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding="ascii") as ascii_file:
        print_runs(read_runs([write_run(records=history([0.5]))]), Console(file=ascii_file, width=80))
        ascii_file.flush()
        text = raw.getvalue().decode("ascii")
    assert "curves need an output in UTF-8" in text
    assert "50.0%" in text


def test_a_value_that_differs_stands_beside_the_numbers_of_its_runs(write_run: WriteRun) -> None:
    rates = (3e-4, 1e-3, 3e-4)
    folders = [write_run(f"run{number}", recipe={"optimization": {"lr": rate}}) for number, rate in enumerate(rates)]
    assert re.search(r"lr +0\.0003 +1 3 *\n +0\.001 +2 *\n", printed(folders))


def test_run_that_has_just_begun(write_run: WriteRun) -> None:
    assert "0/4" in printed([write_run()])

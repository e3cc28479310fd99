"""The command, end to end on a few drawn videos: cells are run, and the report tells what was."""

from __future__ import annotations

from pathlib import Path

import pytest

from evidence import __main__ as command
from evidence.cells import load_result
from evidence.claims import CLAIMS, Claim, Variant
from helpers import files_below, noise, write_video

TINY = Claim("tiny", "Small is enough.", "0", (Variant("plain"),), "plain", ())


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    lines = ["path,label,split"]
    for number in range(14):
        label = "wave" if number % 2 else "bow"
        write_video(tmp_path / f"{number}.mp4", noise(8, height=48, width=64, seed=number))
        lines.append(f"{number}.mp4,{label},{'train' if number < 4 else 'test'}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    return tmp_path / "manifest.csv"


def test_from_a_manifest_to_the_report(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(CLAIMS, "tiny", TINY)
    results = tmp_path / "results"
    options = ["tiny", "--quick", "--data", f"own={manifest}", "--only", "own", "--jobs", "1"]
    options += ["--results", str(results), "--cache", str(tmp_path / "cache")]
    assert command.main([*options, "--list"]) == 0
    assert "0 of 3 cells done" in capsys.readouterr().out
    assert not results.exists()

    assert command.main(options) == 0
    found = [load_result(path) for path in results.glob("*.json")]
    assert {(result.cell.data, result.cell.start) for result in found} == {("own", "stills"), ("own", "scratch")}
    for result in found:
        assert len(result.answers) == 10
        assert result.labels == ("bow", "wave")
        assert result.right == (0, 1) * 5  # in the order of the manifest
        assert set(result.answers) | set(result.shuffled) <= {0, 1}
    text = (results / "report.md").read_text()
    assert "| chance | 50.0 |" in text
    assert "3 of 3 cells" in text
    assert str(tmp_path) not in "".join(path.read_text() for path in results.glob("*.*"))
    assert (results / "report.html").read_text().count("<svg") == 2
    assert not any((tmp_path / "cache" / "runs").iterdir())

    before = files_below(results)
    assert command.main([*options]) == 0
    assert files_below(results) == before  # nothing is run again, and the report is the same
    assert "0 of 3 cells to run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["layout"], "no claim 'layout'; there are layouts,"),
        (["--only", "mnist"], "no data set 'mnist'; there are motions,"),
        (["--data", "weizmann"], "--data weizmann: give NAME=MANIFEST"),
        (["--data", "own=/nowhere.csv"], "/nowhere.csv: no such folder or manifest"),
        (["--report", "--results", "/nowhere"], "/nowhere: no results to report"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_what_takes_long_is_run_where_it_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--list", "--cache", str(tmp_path)]
    assert command.main(options) == 0
    assert "own_data" not in capsys.readouterr().out
    assert command.main(["own_data", *options]) == 0
    assert "own_data: " in capsys.readouterr().out

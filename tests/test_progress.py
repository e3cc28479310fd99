"""What is shown about work that goes on is on stderr, and only where it was asked for."""

from __future__ import annotations

import pytest

from uniformerv2.progress import say, track


@pytest.mark.parametrize("progress", [True, False])
def test_a_line_is_printed_as_it_is_on_stderr(capsys: pytest.CaptureFixture[str], progress: bool) -> None:
    line = "[bold]" + 30 * "long " + "1 of 4"
    say(line, progress=progress)
    assert capsys.readouterr() == ("", f"{line}\n" if progress else "")


@pytest.mark.parametrize("progress", [True, False])
def test_items_pass_through_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, progress: bool
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal
    assert list(track(iter("abc"), "letters", total=3, progress=progress)) == ["a", "b", "c"]
    output, errors = capsys.readouterr()
    assert output == ""
    assert ("letters" in errors) == progress

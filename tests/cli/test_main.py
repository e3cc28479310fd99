"""The command line as a program: usage, exit status, and what a command imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from helpers import Run, assert_error_line
from uniformerv2.predict import Predictor


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["train"], ["train", "data", "--output", "x", "--nonsense", "1"]]
)
def test_wrong_usage_ends_with_status_2(uniformerv2: Run, arguments: list[str]) -> None:
    status, output, errors = uniformerv2(*arguments)
    assert (status, output, bool(errors)) == (2, "", True)


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), PermissionError(13, "no access", "x"), ZeroDivisionError()])
def test_what_ends_a_command_is_one_line_and_programming_errors_keep_their_traceback(
    uniformerv2: Run, checkpoint: Path, video: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise raised

    monkeypatch.setattr(Predictor, "predict_all", fail)
    if isinstance(raised, ZeroDivisionError):
        with pytest.raises(ZeroDivisionError):
            uniformerv2("predict", checkpoint, video)
        return
    status, output, errors = uniformerv2("predict", checkpoint, video)
    interrupted = isinstance(raised, KeyboardInterrupt)
    assert (status, output) == (130 if interrupted else 2, "")
    assert_error_line(errors, "interrupted" if interrupted else "x: no access")


def imported(*arguments: str) -> tuple[dict[str, str], subprocess.CompletedProcess[str]]:
    """Modules that Python imports for these arguments, with the module that imports each; all other lines of stderr."""
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=False
    )
    lines = ended.stderr.splitlines(keepends=True)
    importers: dict[str, str] = {}
    path: list[str] = []
    for line in reversed(lines):  # what a module imports stands above it, two spaces further in
        if line.startswith("import time:"):
            name = line.rpartition("|")[2][1:].rstrip()
            path = path[: (len(name) - len(name.lstrip())) // 2]
            importers[name.strip()] = path[-1] if path else ""
            path.append(name.strip())
    ended.stderr = "".join(line for line in lines if not line.startswith("import time:"))
    return importers, ended


def test_help_imports_nothing_heavy() -> None:
    commands = ["", "train", "evaluate", "features", "predict", "timeline", "stream", "demo", "info", "data check"]
    commands += ["runs", "benchmark"]
    code = (
        "import sys\nfrom uniformerv2.cli import main\n"
        "for command in sys.argv[1:]:\n"
        "    try:\n        main([*command.split(), '--help'])\n"
        "    except SystemExit as end:\n        assert not end.code\n"
    )
    modules, ended = imported("-c", code, *commands)
    assert (ended.returncode, ended.stdout.count("usage: ")) == (0, len(commands))
    assert "tyro" in modules
    assert not modules.keys() & {"torch", "av", "numpy", "safetensors", "huggingface_hub", "plotille"}


def test_the_package_is_a_program(checkpoint: Path, video: Path) -> None:
    modules, ended = imported("-m", "uniformerv2", "predict", str(checkpoint), str(video), "absent.mp4")
    assert ended.returncode == 2
    assert ended.stdout.splitlines()[0] == str(video)
    assert ended.stdout.splitlines()[1].endswith("red")
    assert all(line.startswith("error: ") for line in ended.stderr.splitlines())
    assert "absent.mp4" in ended.stderr
    assert "torch" in modules
    assert not modules.keys() & {"torch._dynamo", "torch._inductor", "sympy"}
    # other packages may import it for themselves; a function's import has no importer
    assert modules.get("rich.progress", "others").partition(".")[0] not in ("", "uniformerv2")

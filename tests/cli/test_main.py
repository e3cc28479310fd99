"""The command line as a program: usage, exit status, and what a command imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from helpers import Run, assert_error_line
from uniformerv2.predict import Predictor


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["train"], ["train", "data", "--output", "x", "--nonsense", "1"]]
)
def test_wrong_usage_ends_with_status_2(uniformerv2: Run, arguments: list[str]) -> None:
    status, output, errors = uniformerv2(*arguments)
    assert (status, output) == (2, "")
    assert errors


@pytest.mark.parametrize(("raised", "status"), [(KeyboardInterrupt(), 130), (PermissionError(13, "no access", "x"), 2)])
def test_what_ends_a_command_is_one_line(
    uniformerv2: Run, checkpoint: Path, video: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, status: int
) -> None:
    monkeypatch.setattr(Predictor, "predict_all", Mock(side_effect=raised))
    ended, output, errors = uniformerv2("predict", checkpoint, video)
    assert (ended, output) == (status, "")
    assert_error_line(errors, "interrupted" if status == 130 else "x: no access")


def test_programming_errors_keep_their_traceback(
    uniformerv2: Run, checkpoint: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "predict_all", Mock(side_effect=ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        uniformerv2("predict", checkpoint, video)


def imported(*arguments: str) -> tuple[dict[str, set[str]], subprocess.CompletedProcess[str]]:
    """Modules that Python imports for these arguments, each with the packages that import it, and its end."""
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=False
    )
    lines = ended.stderr.splitlines(keepends=True)
    importers: dict[str, set[str]] = {}
    path: list[str] = []
    for line in reversed(lines):  # what a module imports stands above it, two spaces further in
        if line.startswith("import time:"):
            name = line.rpartition("|")[2][1:].rstrip()
            path = path[: (len(name) - len(name.lstrip())) // 2]
            importers[name.strip()] = {module.partition(".")[0] for module in path}
            path.append(name.strip())
    ended.stderr = "".join(line for line in lines if not line.startswith("import time:"))
    return importers, ended


def test_help_imports_nothing_heavy() -> None:
    commands = ["", "train", "evaluate", "features", "predict", "timeline", "stream", "demo", "info", "data check"]
    commands += ["runs", "benchmark", "probe", "score"]
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
    # other packages may import it for themselves
    assert "rich.progress" not in modules or modules["rich.progress"] - {"uniformerv2", "rich"}

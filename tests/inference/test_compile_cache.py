"""The kept code of torch.compile: found by the next start, and compiled again where it is damaged."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from uniformerv2.inference import compile_cache
from uniformerv2.inference.compile_cache import VARIABLE, note_checksums, remove_damaged, use_cache

START = """
import torch
from torch._dynamo.utils import counters
from uniformerv2.inference.compiled import Graphs

with torch.inference_mode():
    [found] = Graphs(lambda x: (x.cos() * 2,))(torch.arange(64.0)[None])
assert torch.allclose(found, torch.arange(64.0).cos() * 2, atol=1e-5)
print({name: counters["inductor"]["fxgraph_cache_" + name] for name in ("hit", "miss")})
"""


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No folder is named, and the hub's cache is a new one."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(compile_cache, "cache_file", lambda: tmp_path / "uniformerv2" / "attention.json")
    use_cache.cache_clear()
    yield
    use_cache.cache_clear()


def test_a_second_start_finds_the_code_and_one_after_damage_compiles_again(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE} | {"HF_HUB_CACHE": str(tmp_path)}

    def start() -> str:
        done = subprocess.run(
            [sys.executable, "-c", START], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert start() == "{'hit': 0, 'miss': 1}"
    assert start() == "{'hit': 1, 'miss': 0}"
    files = [
        file for file in (tmp_path / "uniformerv2/compiled").rglob("*") if file.is_file() and file.suffix != ".json"
    ]
    assert ".so" in {file.suffix for file in files}
    for file in files:  # libraries of which an eighth is left end a process that loads them
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 8])
    assert start() == "{'hit': 0, 'miss': 1}"


def test_only_what_changed_or_was_never_finished_is_removed(tmp_path: Path) -> None:
    for name in ("kept", "cut", "new", "old"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        (tmp_path / "sub" / name).write_bytes(b"code")
        if name == "cut":
            note_checksums(tmp_path)
    (tmp_path / "sub/cut").write_bytes(b"cod")
    os.utime(tmp_path / "sub/old", (0, 0))
    remove_damaged(tmp_path)
    assert sorted(file.name for file in (tmp_path / "sub").iterdir()) == ["kept", "new"]
    (tmp_path / "checksums.json").write_text("[")
    remove_damaged(tmp_path)  # nothing is known of them, and they are not old
    assert len(list((tmp_path / "sub").iterdir())) == 2


def test_the_folder_is_in_the_hubs_cache_unless_the_user_has_named_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert use_cache() == tmp_path / "uniformerv2/compiled"
    assert os.environ[VARIABLE] == str(tmp_path / "uniformerv2/compiled")
    use_cache.cache_clear()
    monkeypatch.setenv(VARIABLE, "/of/the/user")
    assert use_cache() is None
    assert os.environ[VARIABLE] == "/of/the/user"


def test_where_nothing_can_be_written_torchs_own_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "uniformerv2").write_text("a file")
    assert use_cache() is None
    assert VARIABLE not in os.environ
    note_checksums(None)

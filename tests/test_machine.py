from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from uniformerv2 import machine

MODULE = "import os, sys; from uniformerv2.machine import prepare_threads; prepare_threads(); " + (
    "assert 'torch' not in sys.modules"
)


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A drawn /sys/fs/cgroup, on a machine with 16 processors."""
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return tmp_path


def draw(root: Path, own: str, files: dict[str, str]) -> None:
    (root / "own").write_text(own)
    for name, text in files.items():
        file = root / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")


V1 = "3:memory:/a\n2:cpu,cpuacct:/a\n1:name=systemd:/\n"


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {}, 16),
        ("0::/\n", {"cpu.max": "max 100000"}, 16),
        ("0::/\n", {"cpu.max": "400000 100000"}, 4),
        ("0::/a/b\n", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "800000 100000"}, 2),  # a part of one counts
        ("0::/\n", {"cpu.max": "10000 100000"}, 1),
        (V1, {"cpu,cpuacct/a/cpu.cfs_quota_us": "-1", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}, 16),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "300000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 3),
        (V1, {"cpu,cpuacct/a/cpu.cfs_quota_us": "700000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}, 7),
    ],
)
def test_a_quota_counts_as_so_many_cores(groups: Path, own: str, files: dict[str, str], cores: int) -> None:
    draw(groups, own, files)
    assert machine.available_cores() == cores


def test_without_control_groups_the_cores_that_it_is_bound_to_count(groups: Path) -> None:
    assert machine.available_cores() == 16


@pytest.mark.parametrize(("quota", "card", "world", "workers"), [
    (2, False, 1, 2), (2, True, 1, 2), (16, False, 1, 4), (16, True, 1, 15), (16, True, 4, 3), (1, False, 1, 2),
])  # fmt: skip
def test_more_processes_read_where_a_card_waits(
    groups: Path, monkeypatch: pytest.MonkeyPatch, quota: int, card: bool, world: int, workers: int
) -> None:
    draw(groups, "0::/\n", {"cpu.max": f"{quota}00000 100000"})
    monkeypatch.setattr(machine, "_CARDS", groups if card else groups / "none")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(world))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.reading_workers() == workers
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.reading_workers() == max(2, quota // world // 4)


@pytest.mark.parametrize(
    ("said", "spin"),
    [({}, str(machine.SPIN_COUNT)), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_that_wait_spin_shortly_unless_the_user_has_said_how(said: dict[str, str], spin: str) -> None:
    names = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    code = f"{MODULE}; print(os.environ.get('GOMP_SPINCOUNT'))"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment | said, capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == spin


def test_a_process_with_little_processor_time_says_the_way_out() -> None:
    assert machine.starved(19.0, 10.0, 2) == ""
    assert machine.starved(3.0, 10.0, 1) == ""
    assert "8 threads of this process got the time of 2.4 processors" in machine.starved(24.0, 10.0, 8)
    assert "OMP_NUM_THREADS=2 " in machine.starved(24.0, 10.0, 8)

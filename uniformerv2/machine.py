"""A machine that is shared: how many processors this process has, and how its threads wait. Imports no torch."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from math import ceil
from pathlib import Path

SPIN_COUNT = 10_000
"""Rounds that a thread of GNU OpenMP waits before it sleeps (docs/performance.md has what it costs and saves).

Its own default, 20 ms and more, takes the processor from whoever has work: beside another process each parallel part
then lasts a time slice of the scheduler.
"""
_MOST_WORKERS = 16
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_CARDS = "/dev/nvidia0"


def processor_name() -> str:
    """As its maker calls it, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def available_cores() -> int:
    """Processors that this process may use: those it is bound to, or as many as the quota of its container is worth."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([bound, *(ceil(quota) for quota in _quotas())]))


def _quotas() -> Iterator[float]:
    """Processors' worth of time that each control group around this process allows; nothing where none is limited."""
    try:
        lines = _OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # version 2 has one tree, version 1 one for each set of controllers
        root = _CGROUPS / (controllers or ".")
        for part in [*Path(path.lstrip("/")).parents, Path(path.lstrip("/"))]:
            quota, period = _limit(root / part, version=1 if controllers else 2)
            if quota > 0 and period > 0:
                yield quota / period


def _limit(group: Path, *, version: int) -> tuple[float, float]:
    """Quota and period of a control group in microseconds; (-1, -1) without a limit."""
    files = ["cpu.cfs_quota_us", "cpu.cfs_period_us"] if version == 1 else ["cpu.max"]
    try:
        quota, period = " ".join((group / file).read_text(encoding="utf-8").strip() for file in files).split()
        return float(quota), float(period)
    except (OSError, ValueError):  # no such file, or "max"
        return -1, -1


def reading_workers() -> int:
    """How many processes should read videos: most cores where a GPU waits for them, else some beside the computing.

    Of a machine on which torchrun has started several processes, each has its share.
    """
    cores = available_cores() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    card = Path(_CARDS).exists() and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")
    return max(2, min(cores - 1 if card else cores // 4, _MOST_WORKERS))


WORKERS = reading_workers()
"""The default of `workers` everywhere."""


def prepare_threads() -> None:
    """Let OpenMP's threads fit a shared machine, unless the user has said otherwise. Before torch is imported."""
    if "torch" in sys.modules:
        return
    own = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
    if not own & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
        os.environ["KMP_BLOCKTIME"] = "1"  # milliseconds, of Intel's runtime
    if available_cores() < (os.cpu_count() or 1):  # OpenMP does not know of quotas
        os.environ.setdefault("OMP_NUM_THREADS", str(available_cores()))


def starved(cpu_seconds: float, seconds: float, threads: int) -> str:
    """What to say of a process that got less than half the processor time that its threads could have used.

    Args:
        cpu_seconds: of all its threads, while it computed.
        seconds: for which it computed.
        threads: that it computes with.

    Returns:
        A line for people; empty where there is nothing to say.
    """
    got = cpu_seconds / max(seconds, 1e-9)
    if threads < 2 or got >= threads / 2:
        return ""
    return (
        f"the {threads} threads of this process got the time of {got:.1f} processors: others use them, or the work is "
        f"too small for so many; OMP_NUM_THREADS={max(1, round(got))} may be faster"
    )

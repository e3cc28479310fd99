"""What one video may cost: limits that no honest file meets, and that the environment or a command can raise."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from uniformerv2.errors import RecipeError, VideoError

_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_TIMES = {"": 1, "s": 1, "min": 60, "h": 3600, "d": 86400}
_NUMBER = re.compile(r"(\d+(?:\.\d*)?)\s*([a-z]*)")


@dataclass(frozen=True)
class Limits:
    """What one video may cost before it is refused.

    Raises:
        RecipeError: a limit that is not positive.
    """

    pixels: int = 8192 * 8192  # of a frame
    chunk_bytes: int = 512 << 20  # of a packet, or of any other part of a file that is held in memory as one
    duration_seconds: float = 31 * 86400.0  # of a video that is divided by time
    frames: int = 5_000_000  # decoded for one answer
    seconds: float = 4 * 3600.0  # of decoding for one answer; of the processor, in worker processes
    memory_bytes: int | None = None  # that a worker process may take beyond what it starts with; None: any

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value is not None and not value > 0:
                raise RecipeError(f"the limit {limit.name} must be above 0, got {value}")

    @classmethod
    def from_environment(cls) -> Limits:
        """The defaults, and instead of them what variables such as UNIFORMERV2_MAX_PIXELS say.

        Raises:
            RecipeError: a variable that is no positive number.
        """
        given = {limit.name: os.environ.get(_variable(limit.name), "") for limit in fields(cls)}
        return cls(**{name: _parsed(_variable(name), name, text) for name, text in given.items() if text})

    def exceeded(self, limit: str, found: float, name: str) -> VideoError:
        """The error of a video that is over a limit; it says how to raise that.

        Args:
            limit: a field of this class.
            found: what the video would need, in the unit of the limit.
            name: of the video.
        """
        return VideoError(
            f"{name}: {limit} is {found:.12g}, and the limit {getattr(self, limit):.12g}; if you trust the file, raise "
            f"it with {way_out(limit)}"
        )


def way_out(limit: str) -> str:
    """How a limit is raised, in words."""
    return f"--limit {limit}=VALUE or {_variable(limit)}=VALUE in the environment"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library was refused memory; PyTorch tells so by a plain RuntimeError."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def out_of_memory() -> str:
    """Why a video cannot be read that needs more memory than there is."""
    allowed = "there is, or than the limit memory_bytes allows"
    return f"it needs more memory than {allowed}; raise that with {way_out('memory_bytes')}"


@contextmanager
def limits_set(given: Iterable[str]) -> Iterator[None]:
    """Limits written as `NAME=VALUE` are those of the environment, and so of processes that start now.

    Raises:
        RecipeError: no such limit, or a value that is no positive number.
    """
    names = [limit.name for limit in fields(Limits)]
    variables = {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in names:
            raise RecipeError(f"--limit {text}: expected NAME=VALUE, where NAME is one of {', '.join(names)}")
        _parsed(f"--limit {name}", name, value)
        variables[_variable(name)] = value
    before = {variable: os.environ.get(variable) for variable in variables}
    os.environ.update(variables)
    try:
        Limits.from_environment()  # or each video would tell what is wrong with it
        yield
    finally:
        for variable, former in before.items():
            os.environ.pop(variable)
            if former is not None:
                os.environ[variable] = former


def _variable(limit: str) -> str:
    return f"UNIFORMERV2_MAX_{limit.upper()}"


def _parsed(where: str, limit: str, text: str) -> Any:
    """An int, or float seconds."""
    units = _TIMES if limit.endswith("seconds") else _SIZES
    match = _NUMBER.fullmatch(text.strip().lower())
    unit = units.get(match[2] if units is _TIMES else match[2].removesuffix("b"), 0) if match else 0
    value = float(match[1]) * unit if match else 0.0
    value = value if units is _TIMES else int(value)  # of whole pixels, bytes and frames
    if not value:
        such = "90, 30s, 10min, 4h, 2d" if units is _TIMES else "1000000, 1.5M, 2GB, 512MiB"
        raise RecipeError(f"{where}={text}: expected a number above 0, such as {such}")
    return value

"""Programs that show curves, with the numbers of metrics.jsonl. They are imported when asked for, and not before."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from uniformerv2.errors import RecipeError

LoggerName = Literal["tensorboard", "wandb"]


class Logger(Protocol):
    """Takes the numbers of a step or an epoch."""

    def write(self, kind: str, numbers: Mapping[str, float], step: int) -> None:
        """Numbers of `kind` "step" or "epoch", known after so many steps."""

    def close(self) -> None:
        """Nothing more comes."""


@contextmanager
def open_loggers(
    names: Sequence[LoggerName], folder: Path, recipe: Mapping[str, Any], *, finished_steps: int = 0
) -> Iterator[list[Logger]]:
    """A logger for each name, closed at the end.

    Args:
        names: "tensorboard" writes into the folder `tensorboard` of the run; "wandb" is Weights & Biases, with
            the settings of that program.
        folder: of the run.
        recipe: what is run.
        finished_steps: where a resumed run goes on; what was logged of later steps does not count any more.

    Raises:
        RecipeError: a logger is not installed, or does not start.
    """
    with ExitStack() as stack:
        yield [stack.enter_context(closing(_LOGGERS[name](folder, recipe, finished_steps))) for name in names]


def check_loggers(names: Sequence[LoggerName]) -> None:
    """Raises RecipeError for an unknown logger, or one that is not installed."""
    for name in names:
        if name not in _LOGGERS:
            raise RecipeError(f"loggers are {' and '.join(_LOGGERS)}, got {name!r}")
        _module(name)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RecipeError(
            f'{name} is not installed: pip install "uniformerv2[logging]", or train without it'
        ) from error


class _TensorBoard:
    def __init__(self, folder: Path, recipe: Mapping[str, Any], finished_steps: int) -> None:
        _module("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(
            str(folder / "tensorboard"), purge_step=finished_steps + 1 if finished_steps else None
        )

    def write(self, kind: str, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, folder: Path, recipe: Mapping[str, Any], finished_steps: int) -> None:
        wandb = _module("wandb")
        try:
            self._run = wandb.init(
                project="uniformerv2",
                name=folder.absolute().name,
                id=self._identity(folder, finished_steps),
                resume="allow",
                dir=str(folder),
                config=dict(recipe),
            )
        except wandb.Error as error:
            raise RecipeError(f"wandb does not start: {str(error).splitlines()[0]}") from error

    @staticmethod
    def _identity(folder: Path, finished_steps: int) -> str:
        """Of the run there: the same when it is resumed, another when it is begun again."""
        file = folder / "wandb_id.txt"
        if finished_steps and file.is_file():
            return file.read_text(encoding="utf-8").strip()
        identity = secrets.token_hex(8)
        file.write_text(identity, encoding="utf-8")
        return identity

    def write(self, kind: str, numbers: Mapping[str, float], step: int) -> None:
        self._run.log({f"{kind}/{name}": value for name, value in numbers.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


_LOGGERS: dict[str, Any] = {"tensorboard": _TensorBoard, "wandb": _WeightsAndBiases}

"""The tasks by name. A new one is a folder, a line here, and its docs."""

from __future__ import annotations

from uniformerv2.errors import RecipeError
from uniformerv2.tasks.classification.task import Classification
from uniformerv2.tasks.multilabel.task import Multilabel
from uniformerv2.tasks.video_task import VideoTask
from uniformerv2.text import nearest
from uniformerv2.train.choices import SPAN_TASK

TASKS: dict[str, type[VideoTask]] = {"classification": Classification, "multilabel": Multilabel}


def find_task(name: str) -> type[VideoTask]:
    """The task of that name. Raises RecipeError if there is none."""
    if name == SPAN_TASK:
        raise RecipeError(
            f"spans of films are learned by `uniformerv2 train --task {name}` and tried by `rehearse dry-run`, in "
            "Python by train_localiser"
        )
    if name not in TASKS:
        raise RecipeError(f"no task is called {name!r}; {nearest(name, (*TASKS, SPAN_TASK))}")
    return TASKS[name]

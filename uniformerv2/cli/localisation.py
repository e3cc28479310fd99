"""`uniformerv2 train-spans`, and what `predict --spans` does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from uniformerv2.cli.options import (
    Checkpoint,
    Classes,
    Data,
    Device,
    FeatureCache,
    Group,
    Holdout,
    HoldoutList,
    Limit,
    Output,
    Overwrite,
    Resume,
    Root,
    Workers,
    values,
)
from uniformerv2.cli.output import FAILED, print_error, print_line
from uniformerv2.data.annotations import Annotation
from uniformerv2.errors import RecipeError, VideoError
from uniformerv2.machine import WORKERS
from uniformerv2.tasks.localisation.recipe import LocaliserRecipe


@dataclass(frozen=True, kw_only=True)
class TrainSpans:
    """Train a model that finds labelled spans in long videos, on the embeddings of a video model.

    The rows of a manifest that name one file with start and end are its spans. A part of the files is held out and
    measured by mean average precision.
    """

    model: Checkpoint
    data: Data
    recipe: LocaliserRecipe = field(default_factory=LocaliserRecipe)
    output: Output
    """Folder of the run."""
    root: Root = None
    classes: Classes = None
    holdout: Holdout = None
    holdout_list: HoldoutList = None
    group: Group = None
    device: Device = "auto"
    workers: Workers = WORKERS
    limit: Limit = ()
    resume: Resume = False
    overwrite: Overwrite = False
    save_every_seconds: float = 600.0
    """What a killed run loses at most, whatever the length of an epoch."""
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Programs that show the curves too; each has to be installed. wandb takes project and name of the run from the
    variables WANDB_PROJECT and WANDB_NAME."""
    feature_cache: FeatureCache = None

    def run(self) -> int:
        from uniformerv2.tasks.localisation.training import train_localiser

        result = train_localiser(**values(self, "limit"), progress=True)
        found = result.evaluation
        right = f"average mAP {found.scores.average_mean_ap:.1%} on the held-out films" if found else "nothing held out"
        print_line(f"{result.last}: {right}")
        return 0


def predict_spans(
    checkpoint: Path,
    rows: Sequence[Annotation],
    target: Path,
    *,
    threshold: float,
    batch_size: int | None,
    device: str,
    workers: int,
    as_json: bool,
) -> int:
    """Find the spans of films, write them to a file, and print them; returns the exit status."""
    from uniformerv2.data.tables import check_target
    from uniformerv2.localise import Localiser
    from uniformerv2.spans.files import format_name, write_spans
    from uniformerv2.spans.formats.table import WRITTEN
    from uniformerv2.spans.span import Spans

    paths = list(dict.fromkeys(row.path for row in rows))
    check_target(target)
    if WRITTEN[format_name(target)].one_video and len(paths) > 1:
        raise RecipeError(f"{target}: such a file holds the spans of one video; give .json or .csv for {len(paths)}")
    localiser = Localiser(checkpoint, batch_size=batch_size or 8, device=device)
    found: Spans = {}
    reasons = []
    for path in paths:
        try:
            spans = localiser.localise(path, threshold=threshold, workers=workers, progress=True)
        except VideoError as error:
            reasons.append(str(error))
            continue
        found[str(path)] = spans
        for span in spans if as_json else ():
            print(json.dumps({"video": str(path), **asdict(span)}))
    for reason in reasons:
        print_error(reason)
    if found:
        files = write_spans(found, target)
        if not as_json:
            count = sum(map(len, found.values()))
            print_line(f"{count} spans of {len(found)} videos, written to {', '.join(map(str, files))}")
    return FAILED if reasons else 0

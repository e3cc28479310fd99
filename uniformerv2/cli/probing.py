"""`uniformerv2 probe`."""

from __future__ import annotations

from dataclasses import dataclass, field

from uniformerv2.cli.options import (
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
    Root,
    Workers,
    values,
)
from uniformerv2.cli.output import print_line, print_table
from uniformerv2.machine import WORKERS
from uniformerv2.probing.recipe import ProbeRecipe


@dataclass(frozen=True)
class Probe:
    """Try how far a frozen backbone goes on a folder of videos, in minutes: an attentive probe with many settings.

    The tokens of the videos are computed once; then all learning rates and weight decays are trained together. The one
    that is best on the held-out videos becomes best.safetensors, a model like any other.
    """

    data: Data
    recipe: ProbeRecipe
    output: Output = field(kw_only=True)
    """Folder of the probe: probe.json, best.safetensors, the split, and the tokens."""
    root: Root = None
    classes: Classes = None
    holdout: Holdout = None
    holdout_list: HoldoutList = None
    group: Group = None
    device: Device = "auto"
    workers: Workers = WORKERS
    limit: Limit = ()
    overwrite: Overwrite = False
    feature_cache: FeatureCache = None

    def run(self) -> int:
        from uniformerv2.probing.run import probe

        probed = probe(**values(self, "limit"), progress=True)
        columns = ("learning rate", "weight decay", "held-out accuracy", "held-out loss", "")
        print_table(
            f"{probed.videos} held-out videos",
            columns,
            (
                (
                    f"{setting.learning_rate:g}",
                    f"{setting.weight_decay:g}",
                    "diverged" if setting.top1 is None else f"{setting.top1:.1%}",
                    "" if setting.loss is None else f"{setting.loss:.3f}",
                    "best" if setting == probed.best else "",
                )
                for setting in probed.tried
            ),
            numbers=columns[:4],
        )
        print_line(
            f"{probed.checkpoint}: {probed.best.top1:.1%} of {probed.videos} held-out videos right, by which "
            f"it was chosen of {len(probed.tried)} settings: expect less of other videos"
        )
        return 0

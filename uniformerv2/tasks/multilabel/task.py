"""Multi-label classification: each class is there or not; average precision on held-out videos, and thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from uniformerv2.data.annotations import Annotation
from uniformerv2.data.loader import Batch
from uniformerv2.device import model_device, upload
from uniformerv2.measuring.evaluation import HeldOut, collect
from uniformerv2.measuring.multilabel import MultilabelEvaluation, summarise_multilabel
from uniformerv2.measuring.multilabel_metrics import UNKNOWN_THRESHOLD, best_threshold
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.tasks.classification.mirroring import find_mirroring
from uniformerv2.tasks.classification.reversing import find_reversing
from uniformerv2.tasks.mixing import Mixing, mix
from uniformerv2.tasks.multilabel.losses import LOSSES
from uniformerv2.tasks.start import micro_batch
from uniformerv2.tasks.video_task import Counterparts, VideoTask
from uniformerv2.train.choices import Loss, Monitor
from uniformerv2.train.recipe import Recipe
from uniformerv2.train.task import BatchLoss
from uniformerv2.video.augmentation import Augmentation
from uniformerv2.video.views import Views


class Multilabel(VideoTask):
    """Several labels for every video, or none: a loss of each class by itself, of mixed clips if the recipe asks so.

    Label smoothing spreads its share of what a clip shows over all classes, as in classification. With class weights,
    what is there weighs so much more in the loss that it weighs as much as what is not, class by class.

    After each evaluation the thresholds are those with the best F1 of each class on the held-out videos, seen in one
    view; 0.5 for a class that none of them shows. They go into the checkpoint.
    """

    scalars = ("hit_at_1",)
    monitors: ClassVar[tuple[Monitor, ...]] = ("map", "micro-map", "macro-f1", "loss")
    losses: ClassVar[tuple[Loss, ...]] = tuple(LOSSES)
    several_labels: ClassVar[bool] = True

    def __init__(self, recipe: Recipe, model: UniFormerV2, held_out: Sequence[Annotation] = (), **options: Any) -> None:
        super().__init__(recipe, model, held_out, **options)
        self.label_smoothing = recipe.optimization.label_smoothing
        self.present_weights = self._present_weights() if recipe.optimization.class_weights == "balanced" else None
        self.mixing = Mixing(recipe.augmentation.mixup, recipe.augmentation.cutmix)
        self.thresholds = (UNKNOWN_THRESHOLD,) * model.config.num_classes
        self.describe(model)  # its probabilities are those of each class from here on
        self.evaluation: MultilabelEvaluation | None = None  # the latest
        self._single_view = self._held_out(Views()) if held_out else None

    @classmethod
    def mirroring(cls, augmentation: Augmentation, labels: Sequence[str]) -> Counterparts:
        return find_mirroring(augmentation, labels)

    @classmethod
    def reversing(cls, augmentation: Augmentation, labels: Sequence[str]) -> Counterparts:
        return find_reversing(augmentation, labels)

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss | None:
        """`hit_at_1`: share of the clips whose most likely class is one that they show, mixed ones in part."""
        self.report(batch)
        if not len(batch):
            return None
        device, views = model_device(model), batch.clips.shape[1]
        # (videos, views, ...) -> (clips, ...)
        clips = upload(batch.clips.flatten(0, 1), device)
        of_views = batch.labels if batch.labels.ndim > 2 else batch.labels.unsqueeze(1).expand(-1, views, -1)
        shown = upload(of_views.flatten(0, 1), device)
        clips, others, kept = mix(clips, self.mixing)
        targets = shown.float().lerp(shown[others].float(), 1 - kept) if self.mixing else shown.float()
        logits = model(self.unpack(clips)).float()
        hits = targets.gather(1, logits.argmax(1, keepdim=True)) > 0
        return BatchLoss(self._loss(logits, targets), {"hit_at_1": hits.float().mean()}, len(clips))

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        there, absent = LOSSES[self.recipe.optimization.loss](logits)
        if self.present_weights is not None:
            if self.present_weights.device != there.device:
                self.present_weights = self.present_weights.to(there)
            there = there * self.present_weights
        spread = targets.mean(1, keepdim=True)
        targets = targets.lerp(spread.expand_as(targets), self.label_smoothing)
        return (targets * there + (1 - targets) * absent).sum(1).mean()

    def _present_weights(self) -> Tensor:
        """float32 (classes): clips that do not show a class for each that does; 1 for classes that none shows."""
        shown, clips = torch.tensor(self.clips_shown()), len(self.training)
        return torch.where(shown > 0, (clips - shown) / shown.clamp_min(1e-9), 1.0).clamp_min(1e-9)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """See `VideoTask.evaluate`. F1 is that at thresholds which are chosen on the same videos."""
        if self._single_view is None:
            return {}
        found = self._measured(model, self._single_view, Views())
        columns = zip(found.scores.T, found.present.T, strict=True)
        self.thresholds = tuple(best_threshold(*column) for column in columns)
        self.evaluation = found = replace(found, thresholds=self.thresholds)
        self.report_skipped(found.skipped)
        return {
            "held_out_loss": found.loss,
            "mean_average_precision": found.mean_average_precision,
            "micro_average_precision": found.micro_average_precision,
            "macro_f1": found.macro_f1,
            "micro_f1": found.micro_f1,
        }

    def measure(self, model: nn.Module) -> MultilabelEvaluation:
        """With the views of the recipe and the latest thresholds; the latest evaluation where that is the same."""
        views = self.recipe.evaluation
        if self.evaluation is None and self.held_out:  # as after a resume that found all epochs done
            self.evaluate(model)
        if self.evaluation is not None and len(views) == 1:
            return self.evaluation
        return self._measured(model, self._held_out(views), views)

    def _held_out(self, views: Views) -> HeldOut:
        return HeldOut(
            self.model, self.held_out, views=views, batch_size=micro_batch(self.recipe), workers=self.workers
        )

    def _measured(self, model: nn.Module, held_out: HeldOut, views: Views) -> MultilabelEvaluation:
        assert isinstance(model, UniFormerV2)
        scored = collect(self.held_out, held_out.score(model))
        return summarise_multilabel(model.labels, self.thresholds, self.held_out, scored, views)

    def describe(self, model: UniFormerV2) -> None:
        model.thresholds = self.thresholds

    def random_labels(self, clips: int) -> Tensor:
        return torch.randint(2, (clips, self.model.config.num_classes))

"""Video classification: cross entropy of clips that may be mixed, and accuracy on held-out videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uniformerv2.data.annotations import Annotation
from uniformerv2.data.loader import Batch
from uniformerv2.data.order import inverse_frequencies
from uniformerv2.device import model_device, upload
from uniformerv2.measuring.evaluation import HeldOut
from uniformerv2.measuring.results import Evaluation
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.tasks.classification.mirroring import find_mirroring
from uniformerv2.tasks.classification.reversing import find_reversing
from uniformerv2.tasks.mixing import Mixing, mix
from uniformerv2.tasks.start import micro_batch
from uniformerv2.tasks.video_task import Counterparts, VideoTask
from uniformerv2.train.choices import Loss, Monitor
from uniformerv2.train.recipe import Recipe
from uniformerv2.train.task import BatchLoss
from uniformerv2.video.augmentation import Augmentation
from uniformerv2.video.views import Views


class Classification(VideoTask):
    """A label for every video: cross entropy with label smoothing, of mixed clips if the recipe asks for it.

    With class weights, the loss of a clip is multiplied by the weight of its class, that of a mixed clip by the weights
    of both classes in their shares. The weights have a mean of 1 over the training rows, so a loss is a mean over clips
    as it is without them, however the clips are divided into batches and among processes.
    """

    scalars = ("accuracy",)
    monitors: ClassVar[tuple[Monitor, ...]] = ("top1", "mean-class-accuracy", "macro-f1", "loss")
    losses: ClassVar[tuple[Loss, ...]] = ("cross-entropy",)
    min_classes: ClassVar[int] = 2

    def __init__(self, recipe: Recipe, model: UniFormerV2, held_out: Sequence[Annotation] = (), **options: Any) -> None:
        super().__init__(recipe, model, held_out, **options)
        self.label_smoothing = recipe.optimization.label_smoothing
        self.class_weights = self._balanced_weights() if recipe.optimization.class_weights == "balanced" else None
        self.mixing = Mixing(recipe.augmentation.mixup, recipe.augmentation.cutmix)
        self.evaluation: Evaluation | None = None  # the latest
        self._single_view = self._measured(Views()) if held_out else None

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss | None:
        """Where clips are mixed, a clip counts as right if it gets the class with the larger share."""
        self.report(batch)
        if not len(batch):
            return None
        device, views = model_device(model), batch.clips.shape[1]
        # (videos, views, ...) -> (clips, ...)
        clips = upload(batch.clips.flatten(0, 1), device)
        of_views = batch.labels if batch.labels.ndim > 1 else batch.labels.unsqueeze(1).expand(-1, views)
        labels = upload(of_views.flatten(), device)
        clips, others, kept = mix(clips, self.mixing)
        logits = model(self.unpack(clips)).float()
        loss = self._cross_entropy(logits, labels)
        if self.mixing:  # cross entropy is linear in the target: this is that of the mixed target
            loss = kept * loss + (1 - kept) * self._cross_entropy(logits, labels[others])
        wanted = labels if kept >= 0.5 else labels[others]
        accuracy = (logits.argmax(1) == wanted).float().mean()
        return BatchLoss(loss, {"accuracy": accuracy}, len(clips))

    @classmethod
    def mirroring(cls, augmentation: Augmentation, labels: Sequence[str]) -> Counterparts:
        return find_mirroring(augmentation, labels)

    @classmethod
    def reversing(cls, augmentation: Augmentation, labels: Sequence[str]) -> Counterparts:
        return find_reversing(augmentation, labels)

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.class_weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        # torch's own weights divide by the sum of those in a batch, which differs from batch to batch
        each = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="none")
        if self.class_weights.device != each.device:
            self.class_weights = self.class_weights.to(each)
        return (each * self.class_weights[labels]).mean()

    def _balanced_weights(self) -> Tensor:
        """float32 (classes); 1 for classes that are not trained."""
        counts = self.clips_shown()
        weights = inverse_frequencies({number: count for number, count in enumerate(counts) if count})
        return torch.tensor([weights.get(number, 1.0) for number in range(len(counts))])

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        if self._single_view is None:
            return {}
        assert isinstance(model, UniFormerV2)
        self.evaluation = self._single_view.evaluate(model)
        self.report_skipped(self.evaluation.skipped)
        found = self.evaluation
        return {
            "held_out_loss": found.loss,
            "top1": found.top1,
            "top5": found.top5,
            "mean_class_accuracy": found.mean_class_accuracy,
            "macro_f1": found.macro.f1,
        }

    def measure(self, model: nn.Module) -> Evaluation:
        """With the views of the recipe; the latest evaluation where that is the same."""
        views = self.recipe.evaluation
        if self.evaluation is not None and len(views) == 1:
            return self.evaluation
        assert isinstance(model, UniFormerV2)
        return self._measured(views).evaluate(model)

    def _measured(self, views: Views) -> HeldOut:
        return HeldOut(
            self.model, self.held_out, views=views, batch_size=micro_batch(self.recipe), workers=self.workers
        )

    def random_labels(self, clips: int) -> Tensor:
        return torch.randint(self.model.config.num_classes, (clips,))

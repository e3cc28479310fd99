"""Pre-train the demo's image transformer on drawn stills, and write the asset that the demo arms.

    python tools/pretrain_stills.py --output uniformerv2/assets/stills_vit.safetensors

The stills are single frames of `uniformerv2.demo.motions`, drawn on the fly and never twice. Linear layers read from
the class token, and from every patch token by itself, what was drawn: place, size, angle and opacity of the sprite,
place and progress of the lid. From each patch token they also read what covers its pixels (sprite, nose, lid), in
cells of 4 x 4: without these dense targets, or with AdamW in place of Muon, place and angle were not learned in the
same time. The readers are thrown away; the transformer is saved under timm's names.

Two other targets need no labels, and are there to be compared with (evidence/): `--target contrastive` tells two views
of a still from those of others (SimCLR), `--target masked` fills in hidden patches (MAE, SimMIM).

Cost and figures of the shipped file: uniformerv2/assets/README.md. Needs torch >= 2.9 for Muon.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from uniformerv2.demo.motions import SIZE, Stills, draw_stills
from uniformerv2.model.config import ModelConfig, Preprocessing
from uniformerv2.model.uniformerv2 import UniFormerV2
from uniformerv2.model.vit import ImageTransformer, split_into_patches

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CONFIG = ModelConfig(
    width=96,
    depth=4,
    heads=3,
    patch_size=16,
    image_size=SIZE,
    activation="gelu",
    norm_eps=1e-6,
    patch_bias=True,
    pre_norm=False,
    post_norm=True,
    global_after=(),
)
VALUES = {"place": 2, "size": 1, "angle": 2, "opacity": 1, "covered": 1, "has_lid": 1, "lid": 2}  # columns of each
BINS = 16  # of the angle, which is also read as a distribution: fine angles are hard to tell as one number
CELL = 4  # pixels; side of the cells in which patch tokens tell what covers them
DRAWN_AT_ONCE = 32  # stills; more no longer fit the cache
TEMPERATURE = 0.2  # of the contrastive target
HIDDEN = 0.6  # share of the patches, of the masked target


class StillBatch(NamedTuple):
    images: Tensor  # uint8 (n, 3, h, w)
    values: Tensor  # (n, 10), about one standard deviation wide
    weights: Tensor  # (n, 10): 0 where the value cannot be seen
    angles: Tensor  # (n, bins), a distribution
    cells: Tensor  # (n, patches, 3·cells) in [0, 1]


class DrawnStills(IterableDataset[StillBatch]):
    """Endless batches, other ones in every worker."""

    def __init__(self, batch_size: int, seed: int) -> None:
        self.batch_size, self.seed = batch_size, seed

    def __iter__(self) -> Iterator[StillBatch]:
        worker = get_worker_info()
        rng = np.random.default_rng((self.seed, worker.id if worker else 0))
        while True:
            yield draw_batch(self.batch_size, rng)


def draw_batch(count: int, rng: np.random.Generator) -> StillBatch:
    parts = [_targets(draw_stills(DRAWN_AT_ONCE, rng)) for _ in range(count // DRAWN_AT_ONCE)]
    return StillBatch(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _targets(stills: Stills) -> StillBatch:
    visible, lid = stills.visible[:, None], stills.has_lid[:, None]
    always = np.ones_like(visible)
    columns = [
        (stills.place / 0.2, visible),
        (np.log(stills.size / 0.18)[:, None] / 0.35, visible),
        (stills.angle / 0.7, visible),
        ((stills.opacity[:, None] - 0.85) / 0.2, always),
        (stills.covered[:, None] / 0.3, lid),
        (stills.has_lid[:, None] / 0.4, always),
        (stills.lid / 0.25, lid),
    ]
    values = np.concatenate([value for value, _ in columns], axis=1)
    weights = np.concatenate([np.broadcast_to(weight, value.shape) for value, weight in columns], axis=1)

    angle = np.arctan2(stills.angle[:, 1:], stills.angle[:, :1])
    bins = torch.from_numpy(8.0 * np.cos(angle - np.arange(BINS) * (2 * np.pi / BINS))).float().softmax(1)

    # (n, 3, rows·side·cell, columns·side·cell) -> (n, patches, 3·cells)
    side, (rows, columns_) = CONFIG.patch_size // CELL, CONFIG.grid
    cells = stills.masks.reshape(-1, 3, rows, side, CELL, columns_, side, CELL).mean((4, 7))
    cells = cells.transpose(0, 2, 4, 1, 3, 5).reshape(len(cells), rows * columns_, 3 * side * side)
    return StillBatch(
        torch.from_numpy(stills.images),
        torch.from_numpy(values).float(),
        torch.from_numpy(weights.copy()).float(),
        bins,
        torch.from_numpy(cells),
    )


class Learner(nn.Module):
    """The image transformer, with what its target needs; called with a batch it gives the loss."""

    views = 1  # of each still, that the transformer sees in a step

    def __init__(self) -> None:
        super().__init__()
        preprocessing = Preprocessing(num_frames=1, size=SIZE, mean=MEAN, std=STD)
        self.backbone: ImageTransformer = UniFormerV2(CONFIG, preprocessing).backbone

    def tokens(self, images: Tensor) -> Tensor:
        """uint8 or normalised (n, 3, h, w) -> (n, 1 + patches, width)."""
        tokens, layout = self.backbone.embed(images[:, :, None])
        for block in self.backbone.image_blocks():
            tokens = block(tokens, layout)
        return self.backbone.post_norm(tokens)[:, 0]


class StillReader(Learner):
    """Linear layers read what was drawn."""

    def __init__(self) -> None:
        super().__init__()
        outputs = sum(VALUES.values()) + BINS
        self.from_class_token = nn.Linear(CONFIG.width, outputs)
        self.from_patch_tokens = nn.Linear(CONFIG.width, outputs)
        self.cells = nn.Linear(CONFIG.width, 3 * (CONFIG.patch_size // CELL) ** 2)

    def forward(self, batch: StillBatch) -> Tensor:
        return loss(*self.read(batch.images), batch)

    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (n, 3, h, w) -> values and angle logits (n, 1 + patches, 26), cell logits (n, patches, 48)."""
        tokens = self.tokens(images)
        patches = tokens[:, 1:]
        read = torch.cat([self.from_class_token(tokens[:, :1]), self.from_patch_tokens(patches)], dim=1)
        return read, self.cells(patches)


def loss(read: Tensor, cells: Tensor, batch: StillBatch) -> Tensor:
    """Smooth absolute error of the values, cross entropies of angle and cells; class token as heavy as all patches."""
    values, angles = read.split([batch.values.shape[1], BINS], dim=-1)
    share = torch.full((read.shape[1], 1), 1 / (read.shape[1] - 1))
    share[0] = 1.0
    errors = F.smooth_l1_loss(values, batch.values[:, None].expand_as(values), beta=0.5, reduction="none")
    value_loss = (errors * share * batch.weights[:, None]).sum() / batch.weights.sum()
    visible = batch.weights[:, :1]
    entropies = -(angles.log_softmax(-1) * batch.angles[:, None]).sum(-1, keepdim=True)
    angle_loss = (entropies * share * visible[:, None]).sum() / visible.sum()
    return value_loss + 0.1 * angle_loss + 4.0 * F.binary_cross_entropy_with_logits(cells, batch.cells)


class Contrastive(Learner):
    """The class tokens of two views of a still are alike, and unlike those of other stills (arXiv:2002.05709)."""

    views = 2

    def __init__(self) -> None:
        super().__init__()
        width = CONFIG.width
        self.projection = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, batch: StillBatch) -> Tensor:
        images = torch.cat([random_view(batch.images) for _ in range(self.views)])
        embedded = F.normalize(self.projection(self.tokens(images)[:, 0]), dim=-1)
        likeness = (embedded @ embedded.T / TEMPERATURE).fill_diagonal_(-math.inf)
        return F.cross_entropy(likeness, torch.arange(len(images)).roll(len(batch.images)))


def random_view(images: Tensor) -> Tensor:
    """A random crop of each, as large as before, and other colours: uint8 (n, 3, h, w) -> normalised."""
    count = len(images)
    side = torch.empty(count, 1).uniform_(0.5, 1.0)  # share of that of the image
    corner = torch.cat([side * torch.eye(2)[axis] for axis in range(2)], dim=1).view(count, 2, 2)
    middle = (torch.rand(count, 2, 1) * 2 - 1) * (1 - side[:, None])
    grid = F.affine_grid(torch.cat([corner, middle], dim=2), list(images.shape), align_corners=False)
    cropped = F.grid_sample(images / 255.0, grid, padding_mode="reflection", align_corners=False)
    gain, shift = torch.empty(count, 3, 1, 1).uniform_(0.6, 1.4), torch.empty(count, 3, 1, 1).uniform_(-0.2, 0.2)
    return normalised((cropped * gain + shift).clamp(0, 1))


class Masked(Learner):
    """A linear layer tells the pixels of hidden patches (MAE, arXiv:2111.06377; without a decoder SimMIM, 2111.09886).

    A hidden patch is grey.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pixels = nn.Linear(CONFIG.width, 3 * CONFIG.patch_size**2)

    def forward(self, batch: StillBatch) -> Tensor:
        images = normalised(batch.images / 255.0)
        rows, columns = CONFIG.grid
        hidden = torch.rand(len(images), rows * columns).argsort(1) < round(HIDDEN * rows * columns)
        by_pixel = hidden.view(-1, 1, rows, columns).repeat_interleave(CONFIG.patch_size, 2)
        seen = images.masked_fill(by_pixel.repeat_interleave(CONFIG.patch_size, 3), 0.0)
        told = self.pixels(self.tokens(seen)[:, 1:])
        return F.mse_loss(told[hidden], split_into_patches(images[:, :, None], CONFIG.patch_size)[:, 0][hidden])


def normalised(images: Tensor) -> Tensor:
    """(n, 3, h, w) of [0, 1]."""
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


TARGETS: dict[str, type[Learner]] = {"supervised": StillReader, "contrastive": Contrastive, "masked": Masked}


def build_optimizers(reader: Learner, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for everything else."""
    matrices = [p for name, p in reader.backbone.blocks.named_parameters() if p.ndim == 2]
    others = [p for p in reader.parameters() if all(p is not matrix for matrix in matrices)]
    return [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.99)),
    ]


def pretrain(
    target: str = "supervised", *, steps: int, batch_size: int, learning_rate: float, seed: int, workers: int
) -> Learner:
    torch.manual_seed(seed)
    reader = TARGETS[target]()
    optimizers = build_optimizers(reader, learning_rate)
    stills = iter(DataLoader(DrawnStills(batch_size // reader.views, seed), batch_size=None, num_workers=workers))
    warmup = max(steps // 20, 1)
    for step in range(steps):
        progress = max(step - warmup, 0) / max(steps - warmup, 1)
        rate = learning_rate * min((step + 1) / warmup, (1 + math.cos(math.pi * progress)) / 2)
        batch: StillBatch = next(stills)
        error = reader(batch)
        reader.zero_grad()
        error.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        if step % 200 == 199:
            print(f"step {step + 1} of {steps}  {(step + 1) * batch_size} images  loss {error.item():.3f}", flush=True)
    return reader.eval()


@torch.inference_mode()
def explained_variance(reader: StillReader, batch: StillBatch) -> dict[str, list[float]]:
    """Share of the variance of each value that is read from [the class token, the patch tokens on average]."""
    read = torch.cat([reader.read(images)[0] for images in batch.images.split(128)])[..., : batch.values.shape[1]]
    mean = (batch.values * batch.weights).sum(0) / batch.weights.sum(0)
    total = ((batch.values - mean) ** 2 * batch.weights).sum(0)
    left = ((read - batch.values[:, None]) ** 2 * batch.weights[:, None]).sum(0)  # (1 + patches, 10)
    figures, start = {}, 0
    for name, count in VALUES.items():
        columns = slice(start, start := start + count)
        shares = 1 - left[:, columns].sum(1) / total[columns].sum()
        figures[name] = [round(float(shares[0]), 3), round(float(shares[1:].mean()), 3)]
    return figures


def timm_names(backbone: ImageTransformer) -> dict[str, Tensor]:
    """The weights under the names that timm gives a vision transformer."""
    assert backbone.class_token is not None
    assert backbone.position_embedding is not None
    assert backbone.patch_embedding.bias is not None
    state = {
        "cls_token": backbone.class_token[None, None],
        "pos_embed": backbone.position_embedding[None],
        "patch_embed.proj.weight": backbone.patch_embedding.weight[:, :, 0],
        "patch_embed.proj.bias": backbone.patch_embedding.bias,
    }
    for name, tensor in backbone.state_dict().items():
        if name.startswith("blocks."):
            state[name.replace(".attention.", ".attn.")] = tensor
        elif name.startswith("post_norm."):
            state[name.replace("post_norm.", "norm.")] = tensor
    return {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}


def write_transformer(learner: Learner, path: Path, *, origin: str) -> None:
    """A safetensors file that `uniformerv2.arm` takes."""
    metadata = {
        "heads": str(CONFIG.heads),
        "mean": json.dumps(MEAN),
        "std": json.dumps(STD),
        "origin": origin,
        "licence": "Apache-2.0",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(timm_names(learner.backbone), path, metadata)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--target", choices=TARGETS, default="supervised")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument(
        "--batch-size", type=int, default=64, help=f"images of a step; stills are drawn {DRAWN_AT_ONCE} at once"
    )
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that draw; part of the recipe, as the seed is"
    )
    options = parser.parse_args()

    start = time.monotonic()
    learner = pretrain(
        options.target,
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
        workers=options.workers,
    )
    stills = options.steps * options.batch_size // learner.views
    target = "" if options.target == "supervised" else f", {options.target}"
    origin = f"tools/pretrain_stills.py, {stills} drawn stills, seed {options.seed}{target}"
    write_transformer(learner, options.output, origin=origin)
    print(f"{options.output}: {options.output.stat().st_size} bytes after {time.monotonic() - start:.0f} s")
    if isinstance(learner, StillReader):
        figures = explained_variance(learner, draw_batch(2048, np.random.default_rng((options.seed, 2**31))))
        print("share of the variance explained on 2048 new stills, by the class token and by a patch token:")
        for name, (class_token, patch_token) in figures.items():
            print(f"  {name:8} {class_token:.3f} {patch_token:.3f}")


if __name__ == "__main__":
    main()

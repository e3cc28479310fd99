"""What our models and crops return, under the names of the recorded outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from uniformerv2 import Preprocessing, UniFormerV2, arm
from uniformerv2.video.transforms import test_crops
from uniformerv2.weights.image_hints import Hints
from uniformerv2.weights.image_recognise import read_image_model
from uniformerv2.weights.loading import IMAGE_FIELDS

Outputs = dict[str, Tensor]


def eval_outputs(model: UniFormerV2, clip: Tensor) -> Outputs:
    """Logits, pooled tokens, and the output of every block and every global stage."""
    seen: Outputs = {}
    hooks = [
        block.register_forward_hook(lambda _, __, out, name=f"eval.local.{number}": seen.update({name: out}))
        for number, block in enumerate(model.backbone.blocks)
    ]
    hooks += [
        # one query: (batch, 1, width) -> (batch, width)
        block.register_forward_hook(lambda _, __, out, name=f"eval.global.{number}": seen.update({name: out[0][:, 0]}))
        for number, block in enumerate(model.global_blocks)
    ]
    model.eval()
    with torch.no_grad():
        pooled = model.forward_features(clip).pooled
        seen |= {"eval.pooled": pooled, "eval.features": model.head.norm(pooled), "eval.logits": model.head(pooled)}
    for hook in hooks:
        hook.remove()
    return seen


def train_outputs(model: UniFormerV2, clip: Tensor, target: Tensor) -> Outputs:
    """One step: logits, loss, the gradient of every parameter, and the running statistics after it."""
    model.train()
    logits = model(clip)
    loss = F.cross_entropy(logits, target)
    loss.backward()
    seen = {"train.logits": logits.detach(), "train.loss": loss.detach()}
    parameters = dict(model.named_parameters())
    seen |= {f"train.grad.{name}": each.grad for name, each in parameters.items() if each.grad is not None}
    statistics = model.state_dict().items()
    return seen | {f"train.after.{name}": tensor for name, tensor in statistics if name not in parameters}


def armed(state: Outputs, hints: Hints) -> UniFormerV2:
    """The video model, in eval mode, whose frames are embedded by an image transformer."""
    config = read_image_model(state, hints).config
    return arm(state, num_classes=2, **{field: getattr(config, field) for field in IMAGE_FIELDS}).eval()


def image_outputs(model: UniFormerV2, images: Tensor) -> Outputs:
    """Tokens after the last norm, and embeddings: of the image transformer and of the video model, an image a frame."""
    # (n, 3, height, width) -> one clip of n frames
    clip = images.transpose(0, 1)[None]
    with torch.no_grad():
        tokens, places = model.backbone.embed(clip)
        for block in model.backbone.blocks:
            tokens = block(tokens, places)
        pooled = model.backbone.frame_embeddings(tokens, places)[0]
        tokens = model.backbone.post_norm(tokens)[0]
        armed = model.forward_features(clip).frame_embeddings[0]
    # ours has the registers behind the patches
    registers = tokens[:, tokens.shape[1] - model.config.register_tokens :]
    tokens = torch.cat([tokens[:, : places.class_tokens], registers, tokens[:, places.patches]], dim=1)
    return {"tokens": tokens, "pooled": pooled, "armed": armed}


def crop_outputs(frames: Tensor, side: int) -> Outputs:
    """The three test crops of uint8 (frames, height, width, 3)."""
    crops = test_crops(frames.permute(0, 3, 1, 2), Preprocessing(size=(side, side)), crops=3)
    return {f"crop{number}": crop for number, crop in enumerate(crops)}

"""Record what the official implementation, mmaction2 and timm return for drawn weights, for tests/reference.

    python benchmarks/record_reference.py --reference CHECKOUT [--mmaction2 CHECKOUT] [--timm CHECKOUT] [--check]

A CHECKOUT is a clone of that project at the version named in `SOURCES` below. Nothing has to be installed: stand-ins
replace what its files import besides PyTorch. Each model of tests/reference/manifest.py whose code is given is written
to a file in tests/reference/outputs. With --check nothing is written: the new record is compared with the file, the
largest differences are printed, and a difference above 1e-5 (gradients: 1e-4) makes the exit status 1.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniformerv2 import ModelConfig
from uniformerv2.benchmark.reference import build_reference, import_file, shared_options, standing_in
from uniformerv2.model.vit import DropPath

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from reference.drawn import draw, draw_pixels, draw_state, summarise
from reference.manifest import CROPS, IMAGE, OVERRIDES, SAMPLING, TARGET, VIDEO, Image, Video
from reference.recorded import Record, differences, read_record, record_file

SOURCES = {
    "official": "OpenGVLab/UniFormerV2 @ 722a434",
    "mmaction2": "open-mmlab/mmaction2 @ 4d6c934",
    "timm": "huggingface/pytorch-image-models 1.0.31",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, metavar="CHECKOUT", help=SOURCES["official"])
    parser.add_argument("--mmaction2", type=Path, metavar="CHECKOUT", help=SOURCES["mmaction2"])
    parser.add_argument("--timm", type=Path, metavar="CHECKOUT", help=SOURCES["timm"])
    parser.add_argument("--check", action="store_true", help="compare with the files, write nothing")
    arguments = parser.parse_args()
    checkouts = (arguments.reference, arguments.mmaction2, arguments.timm)
    if not any(checkouts):
        parser.error("nothing to record: give a checkout")
    torch.set_num_threads(1)
    same = True
    for name, record in records(*checkouts):
        if arguments.check:
            same &= check(name, record)
        else:
            write(name, record)
    return 0 if same else 1


def check(name: str, record: Record) -> bool:
    """Print how far a new record is from the file that is there; whether they agree."""
    before = read_record(name)
    largest, past = differences(record["outputs"], before["outputs"])
    if record["weights"] != before["weights"]:
        past.append("weights have other names or shapes")
    figures = "  ".join(f"{kind} {error:.1e}" for kind, error in largest.items())
    print(f"{'FAIL' if past else 'ok  '} {name}: {figures}", *past, sep="\n     ")
    return not past


def records(official: Path | None, mmaction2: Path | None, timm: Path | None) -> Iterator[tuple[str, Record]]:
    for name, video in VIDEO.items():
        if video.source == "official" and official:
            yield name, record_video(name, video, Official(official, video))
        if video.source == "mmaction2" and mmaction2:
            yield name, record_video(name, video, MMAction2(mmaction2, video))
    if official:
        utils, decoder = import_official_data(official)
        yield "crops", record_crops(utils)
        yield "sampling", record_sampling(decoder)
    if timm:
        create_model = import_timm(timm).create_model
        for name, image in IMAGE.items():
            yield name, record_image(name, image, create_model)


class Official(nn.Module):
    """The official model, under the names of its checkpoints."""

    def __init__(self, checkout: Path, video: Video):
        super().__init__()
        self.backbone = build_reference(checkout, ModelConfig(**video.config), num_frames=video.frames)

    @property
    def norm(self) -> nn.Module:
        return self.backbone.transformer.proj[0]

    def forward(self, clip: Tensor) -> Tensor:
        return self.backbone(clip)


class MMAction2(nn.Module):
    """mmaction2's backbone and the linear layer of its head (TimeSformerHead), under the names of its checkpoints."""

    def __init__(self, checkout: Path, video: Video):
        super().__init__()
        config = ModelConfig(**video.config)
        self.backbone = import_mmaction2(checkout).UniFormerV2(
            **shared_options(config, video.frames),
            mlp_dropout=[0.0] * len(config.global_after),
            clip_pretrained=False,
        )
        self.cls_head = nn.ModuleDict({"fc_cls": nn.Linear(config.width, config.num_classes)})

    @property
    def norm(self) -> nn.Module:
        return self.backbone.transformer.norm

    def forward(self, clip: Tensor) -> Tensor:
        return self.cls_head["fc_cls"](self.backbone(clip))


def record_video(name: str, video: Video, model: Official | MMAction2) -> Record:
    """What a model returns in eval mode, then one training step."""
    weights = load_drawn(model, name)
    clip, target = draw(f"{name} input", video.clip, scale=2.0), torch.tensor(TARGET)
    model.eval()
    with torch.no_grad(), watched(model, len(clip)) as seen:
        seen["eval.logits"] = model(clip)
    model.train()
    logits = model(clip)
    loss = F.cross_entropy(logits, target)
    loss.backward()
    seen |= {"train.logits": logits, "train.loss": loss}
    seen |= {f"train.grad.{key}": parameter.grad for key, parameter in model.named_parameters()}
    seen |= {f"train.after.{key}": buffer for key, buffer in model.named_buffers()}
    return summarised(video.source, weights, seen)


@contextmanager
def watched(model: Official | MMAction2, clips: int) -> Iterator[dict[str, Tensor]]:
    """Collects the output of every block and stage, and the pooled token before and after its norm."""
    seen: dict[str, Tensor] = {}
    hooks = []

    def keep(module: nn.Module, name: str, reshape: Callable[[Tensor], Tensor]) -> None:
        hooks.append(module.register_forward_hook(lambda _, __, out: seen.update({name: reshape(out)})))

    for number, block in enumerate(model.backbone.transformer.resblocks):
        # (tokens, clips·frames, width) -> (clips, frames, tokens, width)
        keep(block, f"eval.local.{number}", lambda out: out.transpose(0, 1).unflatten(0, (clips, -1)))
    for number, stage in enumerate(model.backbone.transformer.dec):
        # (1, clips, width) -> (clips, width)
        keep(stage, f"eval.global.{number}", lambda out: out[0])
    keep(model.norm, "eval.features", lambda out: out)
    hooks.append(model.norm.register_forward_pre_hook(lambda _, given: seen.update({"eval.pooled": given[0]})))
    yield seen
    for hook in hooks:
        hook.remove()


def record_image(name: str, image: Image, create_model: Callable[..., nn.Module]) -> Record:
    model = create_model(image.timm_model, img_size=image.side, global_pool=image.pool, num_classes=0, **OVERRIDES)
    weights = load_drawn(model.eval(), name)
    with torch.no_grad():
        tokens = model.forward_features(draw(f"{name} input", image.images, scale=2.0))
        pooled = model.forward_head(tokens, pre_logits=True)
    return summarised("timm", weights, {"tokens": tokens, "pooled": pooled})


def record_crops(utils: ModuleType) -> Record:
    """The three test crops of the official data sets, cut from drawn frames."""
    seen = {}
    for name, (shape, side) in CROPS.items():
        frames = utils.tensor_normalize(draw_pixels(f"{name} frames", shape), [0.45] * 3, [0.225] * 3)
        for crop in range(3):
            seen[f"{name}.crop{crop}"] = utils.spatial_sampling(
                frames.permute(3, 0, 1, 2), crop, min_scale=side, max_scale=side, crop_size=side
            )
    return summarised("official", {}, seen)


def record_sampling(decoder: ModuleType) -> Record:
    """The frames of every test clip of a video."""
    seen = {
        f"{frames} frames, {segments} segments, {clips} clips": torch.tensor(
            [decoder.get_seq_frames(frames, segments, clip, clips) for clip in range(clips)]
        )
        for frames, segments, clips in SAMPLING
    }
    return summarised("official", {}, seen)


def load_drawn(model: nn.Module, seed: str) -> dict[str, list[int]]:
    """Load drawn weights; their names and shapes."""
    shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    model.load_state_dict(draw_state(shapes, seed=seed))
    return shapes


def summarised(source: str, weights: dict[str, list[int]], seen: dict[str, Tensor]) -> Record:
    return {"source": SOURCES[source], "weights": weights, "outputs": summarise(seen)}


def write(name: str, record: Record) -> None:
    """JSON, a line for each tensor; rounded to eight digits."""
    rounded = json.loads(json.dumps(record), parse_float=lambda text: float(f"{float(text):.8g}"))
    parts = [f'"source": {json.dumps(record["source"])}']
    for part in ("weights", "outputs"):
        lines = (
            f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in rounded[part].items()
        )
        parts.append(f'"{part}": {{\n' + ",\n".join(lines) + "\n}")
    record_file(name).parent.mkdir(exist_ok=True)
    record_file(name).write_text("{" + ",\n".join(parts) + "}\n")


def stand_ins(*names: str) -> dict[str, MagicMock]:
    """Empty modules for imports that the recorded functions do not use."""
    return {name: MagicMock() for name in names}


def import_mmaction2(checkout: Path) -> ModuleType:
    modules = stand_ins("mmcv", "mmcv.cnn", "mmcv.cnn.bricks", "mmaction", "mmaction.registry", "mmengine")
    modules |= stand_ins("mmengine.logging", "mmengine.model", "mmengine.runner", "mmengine.runner.checkpoint")
    modules["mmcv.cnn.bricks"].DropPath = DropPath
    modules["mmaction.registry"].MODELS.register_module = lambda: lambda model: model
    modules["mmengine.model"].BaseModule = BaseModule
    modules["mmengine.model"].ModuleList = nn.ModuleList
    with standing_in(modules):
        return import_file(checkout / "mmaction/models/backbones/uniformerv2.py", "mmaction2_uniformerv2")


class BaseModule(nn.Module):
    """Stands in for mmengine's, which adds only how weights are initialised."""

    def __init__(self, init_cfg: object = None):
        super().__init__()


def import_official_data(checkout: Path) -> tuple[ModuleType, ModuleType]:
    """The official slowfast/datasets/utils.py with its transform.py, and decoder.py."""
    modules = stand_ins("slowfast", "slowfast.datasets", "slowfast.datasets.rand_augment", "cv2", "PIL", "iopath")
    modules |= stand_ins("slowfast.datasets.random_erasing", "torchvision", "torchvision.io", "torchvision.transforms")
    modules |= stand_ins("torchvision.transforms.functional", "iopath.common", "iopath.common.file_io")
    folder = checkout / "slowfast/datasets"
    with standing_in(modules):
        modules["slowfast.datasets"].transform = import_file(folder / "transform.py", "slowfast.datasets.transform")
        utils = import_file(folder / "utils.py", "slowfast.datasets.utils")
        return utils, import_file(folder / "decoder.py", "slowfast.datasets.decoder")


def import_timm(checkout: Path) -> ModuleType:
    modules = stand_ins("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.ops")
    modules |= stand_ins("torchvision.transforms.functional", "torchvision.ops.misc", "torchvision.models")
    modules |= stand_ins("torchvision.models.feature_extraction")
    modules["torchvision.ops.misc"].FrozenBatchNorm2d = type("FrozenBatchNorm2d", (nn.Module,), {})
    sys.path.insert(0, str(checkout))
    with standing_in(modules):
        return importlib.import_module("timm")


if __name__ == "__main__":
    sys.exit(main())

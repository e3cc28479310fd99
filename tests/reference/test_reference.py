"""Our models return what the official code, mmaction2 and timm returned for the same weights and inputs."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from reference.drawn import draw_pixels, summarise
from reference.manifest import CROPS, IMAGE, SAMPLING, TARGET, VIDEO
from reference.outputs import Outputs, crop_outputs, eval_outputs, image_outputs, train_outputs
from reference.recorded import differences, draw_input, image_model, read_record, record_file, video_model
from uniformerv2 import Preprocessing
from uniformerv2.video import transforms
from uniformerv2.video.views import segment_indices
from uniformerv2.weights.key_names import VIDEO_FORMATS, from_ours


def test_everything_in_the_manifest_is_recorded() -> None:
    names = {"crops", "sampling", *VIDEO, *IMAGE}
    assert {file.stem for file in record_file("crops").parent.iterdir()} == names
    assert sum(record_file(name).stat().st_size for name in names) < 500_000


def assert_recorded(name: str, outputs: Outputs, *parts: str) -> None:
    """The outputs are those that are recorded under the prefixes `parts`, all of them and no others."""
    recorded = {key: entry for key, entry in read_record(name)["outputs"].items() if key.startswith(parts)}
    assert differences(summarise(outputs), recorded)[1] == []


@pytest.mark.parametrize("name", VIDEO)
def test_video_model(name: str) -> None:
    model = video_model(name)
    expected = VIDEO[name].config
    assert {field: value for field, value in asdict(model.config).items() if field in expected} == expected
    assert_recorded(name, eval_outputs(model, draw_input(name)), "eval.")


@pytest.mark.parametrize("name", VIDEO)
def test_training_step(name: str) -> None:
    outputs = train_outputs(video_model(name), draw_input(name), torch.tensor(TARGET))
    for part in ("train.grad.", "train.after."):
        ours = {key.removeprefix(part): outputs.pop(key) for key in list(outputs) if key.startswith(part)}
        theirs, unknown = from_ours(ours, VIDEO_FORMATS[VIDEO[name].source])
        assert not unknown
        outputs |= {part + key: tensor for key, tensor in theirs.items()}
    assert_recorded(name, outputs, "train.")


@pytest.mark.parametrize("name", VIDEO)
def test_every_weight_counts(name: str) -> None:
    """No gradient is zero, so a weight of another value changes the recorded outputs."""
    record = read_record(name)
    for key in record["weights"]:
        assert "running" in key or "tracked" in key or record["outputs"][f"train.grad.{key}"]["norm"] > 1e-4, key


@pytest.mark.parametrize("name", IMAGE)
def test_image_transformer(name: str) -> None:
    outputs = image_outputs(image_model(name), draw_input(name))
    assert_recorded(name, {"tokens": outputs["tokens"], "pooled": outputs["pooled"]}, "")
    assert_recorded(name, {"tokens": outputs["tokens"], "pooled": outputs["armed"]}, "")


@pytest.mark.parametrize("name", CROPS)
def test_the_three_crops(name: str) -> None:
    shape, side = CROPS[name]
    frames = draw_pixels(f"{name} frames", shape)
    outputs = crop_outputs(frames, side)
    assert_recorded("crops", {f"{name}.{crop}": pixels for crop, pixels in outputs.items()}, f"{name}.")
    centre = transforms.test_crops(frames.permute(0, 3, 1, 2), Preprocessing(size=(side, side)))[0]
    assert_recorded("crops", {f"{name}.crop1": centre}, f"{name}.crop1")


def test_sampled_frames() -> None:
    clips_of = {
        f"{frames} frames, {segments} segments, {clips} clips": torch.tensor(
            [segment_indices(frames, segments, clip=clip, clips=clips) for clip in range(clips)]
        )
        for frames, segments, clips in SAMPLING
    }
    assert_recorded("sampling", clips_of, "")


def test_a_change_of_any_parameter_shows() -> None:
    model, clip = video_model("temporal"), draw_input("temporal")
    recorded = {key: entry for key, entry in read_record("temporal")["outputs"].items() if key.startswith("eval.")}
    for name, parameter in model.named_parameters():
        first = parameter.data.flatten()[:1]
        first += 1 / 16
        assert differences(summarise(eval_outputs(model, clip)), recorded)[1], name
        first -= 1 / 16
    assert not differences(summarise(eval_outputs(model, clip)), recorded)[1]

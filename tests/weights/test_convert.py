"""Every released structure, in the layout of every format: recognised, and converted there and back bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from uniformerv2 import CheckpointError, ModelConfig, UniFormerV2, load_model, named_config, save_model
from uniformerv2.weights.convert import convert
from uniformerv2.weights.files import read_tensors
from uniformerv2.weights.key_names import VIDEO_FORMATS, StateDict, from_ours, to_ours
from uniformerv2.weights.labels import class_list, dataset_name
from uniformerv2.weights.recognise import Known, recognise
from weights.samples import assert_same, same_tensors, small_model

SIZES = {"uniformerv2_b16": "B/16", "uniformerv2_l14": "L/14", "uniformerv2_l14_336": "L/14@336"}
WIDTH = 64  # of the small copies: one head


@pytest.fixture(scope="module")
def facts(shared: Path) -> dict[str, dict[str, dict]]:
    return json.loads((shared / "facts" / "official_structures.json").read_text())


def expected_config(entry: dict, *, small: bool) -> ModelConfig:
    size, layout, _, variant = entry["structure"].split("|")
    config = named_config(SIZES[size], layout, num_classes=entry["num_classes"], mix_class_token=variant != "frozen")
    return replace(config, width=WIDTH, heads=1) if small else config


def official_shapes(facts: dict, entry: dict, *, small: bool) -> dict[str, list[int]]:
    shapes = dict(facts["structures"][entry["structure"]]["state_dict"])
    width = shapes["backbone.class_embedding"][0]
    multiples = {width: WIDTH, 3 * width: 3 * WIDTH, 4 * width: 4 * WIDTH, int(width / 1.5): int(WIDTH / 1.5)}
    if small:
        shapes = {key: [multiples.get(length, length) for length in shape] for key, shape in shapes.items()}
    for name in ("weight", "bias"):
        shapes[f"backbone.transformer.proj.2.{name}"][:1] = [entry["num_classes"]]
    return shapes


def file_name(experiment: str) -> str:
    """Experiments are named exp/k400/k400+k710_l14_f8x336, files k400_k710_uniformerv2_l14_8x336.pyth."""
    rest = experiment.split("/")[2]
    trained, size, clip = rest.rsplit("_", 2)
    return trained.replace("ssv", "sthv").replace("+", "_") + f"_uniformerv2_{size}_{clip.removeprefix('f')}.pyth"


def draw(shapes: dict[str, list[int]]) -> StateDict:
    generator = torch.Generator().manual_seed(len(shapes))
    state = {}
    for key, shape in shapes.items():
        whole = key.endswith("num_batches_tracked")
        state[key] = torch.tensor(7) if whole else torch.randn(shape, generator=generator)
    return state


def in_mmaction2_names(official: StateDict) -> StateDict:
    names = {
        "backbone.transformer.proj.0.": "backbone.transformer.norm.",
        "backbone.transformer.proj.2.": "cls_head.fc_cls.",
    }
    renamed = {}
    for key, tensor in official.items():
        for theirs, other in names.items():
            key = key.replace(theirs, other)
        renamed[key] = tensor
    return renamed


def shapes_of(state: StateDict) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in state.items()}


def shapes_of_model(config: ModelConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return shapes_of(UniFormerV2(config).state_dict())


def test_all_49_are_renamed_both_ways_and_recognised_at_full_size(facts: dict) -> None:
    assert len(facts["experiments"]) == 49
    expected_shapes = cache(shapes_of_model)
    for experiment, entry in facts["experiments"].items():
        shapes = official_shapes(facts, entry, small=False)
        official = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        for kind, state in (("official", official), ("mmaction2", in_mmaction2_names(official))):
            ours, unknown = to_ours(state, VIDEO_FORMATS[kind])
            assert not unknown, experiment
            assert shapes_of(ours) == expected_shapes(expected_config(entry, small=False)), experiment
            back, unknown = from_ours(ours, VIDEO_FORMATS[kind])
            assert not unknown, experiment
            assert shapes_of(back) == shapes_of(state), experiment
            info = recognise(ours, kind, Known(), source="x", file_name=file_name(experiment))  # type: ignore[arg-type]
            assert info.config == expected_config(entry, small=False), experiment
            assert info.preprocessing.num_frames == entry["frames"], experiment
            assert info.preprocessing.size == (entry["crop"], entry["crop"])
            something = experiment.startswith("exp/sth")
            assert info.preprocessing.channel_order == ("bgr" if something and kind == "official" else "rgb")
            dataset = dataset_name(experiment.split("/")[1])
            assert info.labels == class_list(dataset, order=kind), experiment  # type: ignore[arg-type]


def test_every_structure_and_dataset_converts_between_all_formats_and_back_bit_for_bit(
    facts: dict, tmp_path: Path
) -> None:
    """Official -> mmaction2 -> ours -> official -> ours -> mmaction2 -> official: all six ways."""
    seen_before: set[str] = set()
    for experiment, entry in facts["experiments"].items():
        parts = {entry["structure"], experiment.split("/")[1]}
        if parts <= seen_before:  # nothing new: structures have the same tensors for all datasets but in the head
            continue
        seen_before |= parts
        official = draw(official_shapes(facts, entry, small=True))
        path = tmp_path / file_name(experiment)
        torch.save({"model_state": official, "epoch": 3, "cfg": "TRAIN:"}, path)
        model = load_model(path)
        assert model.config == expected_config(entry, small=True), experiment
        assert len(model.labels) == entry["num_classes"]
        assert any("assumed: 1 heads" in line for line in model.loading_report)

        seen: dict[str, StateDict] = {}
        before = path
        for step, to in enumerate(("mmaction2", "ours", "official", "ours", "mmaction2", "official")):
            after = tmp_path / f"{step}.{to}"
            convert(before, after, to=to)  # type: ignore[arg-type]
            if step in (0, 5):  # what is lost in between cannot come back
                metadata, seen[to], *_ = read_tensors(after)
            before = after
        assert same_tensors(seen["official"], official), experiment
        assert json.loads(metadata["labels"]) == list(model.labels)

        converted = in_mmaction2_names(official)
        body = {key: tensor for key, tensor in converted.items() if not key.startswith("cls_head.")}
        assert same_tensors({key: seen["mmaction2"][key] for key in body}, body)
        dataset = dataset_name(experiment.split("/")[1])
        original = {name: row for row, name in enumerate(class_list(dataset, order="official"))}
        # the two orders spell a few classes differently
        rows = [
            (row, original[name]) for row, name in enumerate(class_list(dataset, order="mmaction2")) if name in original
        ]
        assert len(rows) > 0.9 * entry["num_classes"]
        new, old = zip(*rows, strict=True)
        for name in ("cls_head.fc_cls.weight", "cls_head.fc_cls.bias"):
            assert torch.equal(seen["mmaction2"][name][list(new)], converted[name][list(old)])
        for file in tmp_path.iterdir():
            file.unlink()


@pytest.mark.parametrize("to", ["official", "mmaction2"])
def test_what_the_format_cannot_say_is_kept_beside_it(tmp_path: Path, to: str) -> None:
    model = small_model(image_size=(16, 16))
    save_model(model, tmp_path / "ours.safetensors")
    report = convert(tmp_path / "ours.safetensors", tmp_path / "theirs.pth", to=to)  # type: ignore[arg-type]
    assert any("note: these weights expect mean (0.1, 0.2, 0.3)" in line for line in report)
    written = torch.load(tmp_path / "theirs.pth", weights_only=True)
    state = written["model_state" if to == "official" else "state_dict"]
    assert all(key.startswith(("backbone.", "cls_head.")) for key in state), "the state dict itself stays pure"
    assert_same(load_model(tmp_path / "theirs.pth"), model)


def test_a_head_of_ours_in_mmaction2_order_comes_back_in_it(tmp_path: Path) -> None:
    """The official file holds the rows in the official order, and remembers which order ours had."""
    model = small_model(class_list("kinetics400", order="mmaction2"), image_size=(16, 16))
    save_model(model, tmp_path / "ours.safetensors")
    report = convert(tmp_path / "ours.safetensors", tmp_path / "official.pyth", to="official")
    assert any("from the mmaction2 order of kinetics400 into the official order" in line for line in report)
    official = load_model(tmp_path / "official.pyth")
    assert official.labels == class_list("kinetics400", order="official")
    row, other = official.labels.index("abseiling"), model.labels.index("abseiling")
    assert torch.equal(official.head.linear.weight[row], model.head.linear.weight[other])
    convert(tmp_path / "official.pyth", tmp_path / "back.safetensors", to="ours")
    back = load_model(tmp_path / "back.safetensors")
    assert back.labels == model.labels
    assert same_tensors(back.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"register_tokens": 2, "layer_scale": True}, "register_tokens=2, layer_scale=True"),
        ({"activation": "gelu"}, "activation='gelu'"),
        ({"fusion": "parallel"}, "fusion='parallel'"),
        ({"global_after": ()}, "no global stages"),
        ({"image_size": (16, 24)}, r"image_size=\(16, 24\)"),
    ],
)
def test_what_a_format_has_no_name_for_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    save_model(small_model(**{"image_size": (16, 16), **changes}), tmp_path / "ours.safetensors")
    with pytest.raises(CheckpointError, match=rf"ours\.safetensors: the official format cannot express .*{message}"):
        convert(tmp_path / "ours.safetensors", tmp_path / "official.pyth", to="official")
    assert not (tmp_path / "official.pyth").exists()


def test_half_precision_stays_half(tmp_path: Path, facts: dict) -> None:
    entry = facts["experiments"]["exp/k400/k400_b16_f8x224"]
    official = draw(official_shapes(facts, entry, small=True))
    torch.save({key: tensor.half() for key, tensor in official.items()}, tmp_path / "half.pyth")
    convert(tmp_path / "half.pyth", tmp_path / "mm.pth", to="mmaction2")
    assert read_tensors(tmp_path / "mm.pth")[1]["backbone.class_embedding"].dtype == torch.float16
    model = load_model(tmp_path / "mm.pth")
    assert model.head.linear.weight.dtype == torch.float32
    assert "float16 weights turned into float32" in model.loading_report


def test_a_wrong_file_is_not_converted(tmp_path: Path) -> None:
    save_model(small_model(image_size=(16, 16)), tmp_path / "ours.safetensors")
    convert(tmp_path / "ours.safetensors", tmp_path / "official.pyth", to="official")
    content = torch.load(tmp_path / "official.pyth", weights_only=True)
    del content["model_state"]["backbone.transformer.balance"]
    torch.save(content, tmp_path / "less.pyth")
    before = (tmp_path / "ours.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="1 missing: mix"):
        convert(tmp_path / "less.pyth", tmp_path / "ours.safetensors", to="ours")
    assert (tmp_path / "ours.safetensors").read_bytes() == before
    with pytest.raises(CheckpointError, match="no format 'onnx'; there are ours, official, mmaction2"):
        convert(tmp_path / "ours.safetensors", tmp_path / "x", to="onnx")  # type: ignore[arg-type]


def test_a_file_can_be_converted_onto_itself(tmp_path: Path) -> None:
    model = small_model(image_size=(16, 16))
    path = tmp_path / "m"
    save_model(model, path)
    for to in ("official", "mmaction2", "ours", "ours"):
        convert(path, path, to=to)  # type: ignore[arg-type]
        assert same_tensors(load_model(path).state_dict(), model.state_dict())

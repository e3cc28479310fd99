"""Tensors come out of files of every format, and errors name what is wrong with a file in one line."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import Payload
from uniformerv2 import CheckpointError
from uniformerv2.weights.files import read_tensors, write_safetensors
from weights.samples import same_tensors

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2], dtype=torch.int64)}


def test_safetensors_come_with_their_metadata_whatever_the_name(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "weights.pth", {"who": "me"})
    metadata, tensors, *_ = read_tensors(tmp_path / "weights.pth")
    assert metadata == {"who": "me"}
    assert same_tensors(tensors, STATE)
    assert read_tensors(tmp_path / "weights.pth")[0] == {"who": "me"}


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize(
    "wrapped",
    [
        STATE,
        OrderedDict(STATE),
        {"model_state": STATE, "epoch": 3, "cfg": "TRAIN:", "optimizer_state": {"state": {}, "lr": 0.1}},
        {"meta": {"epoch": 1, "classes": ["a"]}, "state_dict": STATE},
        {"model": STATE, "args": Namespace(lr=0.1, name="mae", output=Path("run"), lrs=np.array([0.1, 0.2]))},
        {"student": {"x": torch.zeros(1)}, "teacher": STATE},
        {"state_dict": {"model": STATE}},
        {**STATE, "_metadata": "text", "steps": 7},
        {"state_dict": STATE, "best": np.float64(0.5), "step": np.int64(7)},
    ],
    ids=["bare", "ordered", "official", "mmaction2", "mae", "dino", "nested", "other entries", "numpy numbers"],
)
def test_torch_files_are_unwrapped(tmp_path: Path, wrapped: dict[str, object], archive: bool) -> None:
    torch.save(wrapped, tmp_path / "x.safetensors", _use_new_zipfile_serialization=archive)
    metadata, tensors, *_ = read_tensors(tmp_path / "x.safetensors")
    assert metadata == {}
    assert same_tensors(tensors, STATE)


def test_metadata_of_ours_is_found_in_torch_files(tmp_path: Path) -> None:
    torch.save({"model_state": STATE, "uniformerv2": {"labels": "[]", "odd": 3}}, tmp_path / "x.pyth")
    assert read_tensors(tmp_path / "x.pyth")[0] == {"labels": "[]"}


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_tensors_are_maps_of_the_file_that_cannot_change_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    state = {"a": torch.zeros(1 << 20)}
    if kind == "torch":
        torch.save(state, path)
    else:
        save_file(state, path)
    before = path.read_bytes()
    tensor = read_tensors(path)[1]["a"]
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(path) in maps.read_text(), "the file was copied into memory"
    tensor.fill_(1)
    assert path.read_bytes() == before


def test_files_of_ours_are_laid_out_as_memory_is(tmp_path: Path) -> None:
    """The kernels that torch picks, and so the last digits of a model's outputs, depend on the alignment."""
    state = {"a": torch.arange(3.0), "b": torch.randn(8, 16), "c": torch.randn(32).bfloat16(), "d": torch.tensor(3)}
    state |= {"e": torch.tensor([True, False]), "f": torch.zeros(0, 2), "g": torch.randn(16, 8).T}
    write_safetensors(tmp_path / "x", state, {"who": "Jürgen", "empty": ""})
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
    metadata, tensors, *_ = read_tensors(tmp_path / "x")
    assert metadata == {"who": "Jürgen", "empty": ""}
    assert same_tensors(tensors, state)
    assert all(tensors[key].dtype == tensor.dtype for key, tensor in state.items())
    assert all(tensors[key].data_ptr() % 64 == 0 for key in "bcg")
    assert same_tensors(load_file(tmp_path / "x"), state), "the library reads it too"


@pytest.mark.parametrize("wrap", [lambda payload: payload, lambda payload: {"state_dict": STATE, "meta": payload}])
@pytest.mark.parametrize("archive", [True, False])
def test_code_in_a_pickle_never_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archive: bool, wrap: object
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(wrap(Payload("canary")), "evil.pth", _use_new_zipfile_serialization=archive)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=r"evil\.pth: holds \w+\.mkdir beside .* could run code") as error:
        read_tensors("evil.pth")
    assert "\n" not in str(error.value)
    assert not Path("canary").exists()


def _zip(names: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _torch(content: object, *, archive: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=archive)
    return buffer.getvalue()


def _safetensors(header: object, payload: bytes, *, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + payload


def _tensor(shape: list[int], start: int, end: int) -> dict[str, object]:
    return {"w": {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}}


SCRIPT = {f"model/{name}": b"3" for name in ("data.pkl", "code/__torch__.py", "constants.pkl", "version")}
WHOLE = _safetensors(_tensor([4], 0, 16), bytes(16))
BAD = {
    "empty": (b"", "is empty"),
    "text": (b"not weights at all", "unknown format .* b'not weig'"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git-lfs"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
    "s3 error": (b'\n<?xml version="1.0"?><Error><Code>NoSuchBucket</Code></Error>', "web page or XML"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
    "json": (b'{"_class_name": "x"}', "JSON"),
    "plain pickle": (pickle.dumps({"a": np.zeros(3)}), "a plain pickle"),
    "safetensors cut": (WHOLE[:-3], "damaged or cut short"),
    "safetensors cut in the header": (WHOLE[:30], "damaged or cut short"),
    "header too long": (_safetensors(_tensor([4], 0, 16), bytes(16), length=1 << 60), "damaged or cut short"),
    "offsets beyond the file": (_safetensors(_tensor([4000], 0, 16000), bytes(16)), "does not fit its content"),
    "shape beyond the offsets": (_safetensors(_tensor([1 << 40], 0, 16), bytes(16)), "does not fit its content"),
    "offsets backwards": (_safetensors(_tensor([4], 16, 0), bytes(16)), "does not fit its content"),
    "bytes left over": (_safetensors(_tensor([4], 0, 16), bytes(64)), "does not fit its content"),
    "archive cut": (_torch(STATE)[:-200], "damaged or cut short"),
    "archive cut early": (_torch(STATE)[:200], "damaged or cut short"),
    "legacy cut": (_torch(STATE, archive=False)[:-12], "damaged or cut short"),
    "legacy cut early": (_torch(STATE, archive=False)[:60], "damaged or cut short"),
    "torchscript": (_zip(SCRIPT), r"TorchScript .* arm\(torch\.jit\.load"),
    "other archive": (_zip({"word/document.xml": b"<x/>"}), "something else .*word/document.xml"),
    "archive without its tensors": (_zip({"x/data.pkl": b"\x80\x02}q\x00.", "x/version": b"3"}), "no tensors"),
    "archive with a broken pickle": (_zip({"x/data.pkl": b"\x80\x02}q", "x/version": b"3"}), "damaged"),
    "packed again": (_zip({"x/data.pkl": bytes(99)}, zipfile.ZIP_DEFLATED), "compression"),
    "no state dict": (_torch([1, 2]), "a list, expected a state dict"),
    "no tensors": (_torch({"epoch": 1, "lr": 0.1}), "no tensors found; its entries are epoch, lr"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_in_one_line(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    path = tmp_path / f"{name}.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        read_tensors(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pickle_that_lies_about_its_tensors_is_refused(tmp_path: Path) -> None:
    """One small storage, seen as a tensor larger than any machine's memory."""
    torch.save({"a": torch.zeros(1).expand(1 << 50)}, tmp_path / "huge.pth")
    with pytest.raises(CheckpointError, match=r"huge\.pth: its weights need 4503599\.6 GB"):
        read_tensors(tmp_path / "huge.pth")


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.pth: no such file"):
        read_tensors(tmp_path / "absent.pth")
    (tmp_path / "best.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"a folder, .*in it: best\.safetensors"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_model_larger_than_the_memory_is_refused_before_it_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"a": torch.zeros(1000, dtype=dtype)}, tmp_path / "large.safetensors")
    with pytest.raises(CheckpointError, match=r"large\.safetensors: its weights need 0\.0 GB .* this machine has"):
        read_tensors(tmp_path / "large.safetensors", memory=3000)  # 4000 as float32
    assert read_tensors(tmp_path / "large.safetensors", memory=5000)[1]["a"].shape == (1000,)

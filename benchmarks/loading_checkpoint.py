"""Does loading a large checkpoint cost more than reading its file?

    python benchmarks/loading_checkpoint.py

A UniFormerV2 L/14@336 (354 million parameters, random weights) is written as a file of ours and as an official one.
Each is loaded with `load_model` and every page of every tensor is touched, so that memory-mapped pages count as if they
had been read. Compared with it is reading the same file in chunks of 8 MiB, from a warm file cache.

Time: medians of five alternating rounds, at most twice that of reading. Memory: the peak of the resident set of a fresh
process above what it was before loading (packages imported), at most 1.3 times the size of the weights. Exits 1 where a
limit is missed.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import huggingface_hub
import safetensors
from timing import alternate, machine

from uniformerv2 import UniFormerV2, load_model, named_config, save_model
from uniformerv2.weights.convert import convert

TIME_LIMIT, MEMORY_LIMIT = 2.0, 1.3
CHUNK = 8 << 20
PAGE = 4096

# prints the peak of the resident set while loading, less what it was before, in bytes
MEASURE = """
import sys
from loading_checkpoint import load, resident
load(sys.argv[2])
before = resident("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts anew
model = load(sys.argv[1])
print(resident("VmHWM") - before)
"""


def main() -> int:
    if platform.system() != "Linux":
        print("the peak of the resident set is read from /proc: Linux only")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(Path(folder))
        missed = [name for name, file in files.items() if not measure(name, file, Path(folder))]
    versions = f"safetensors {safetensors.__version__}, huggingface_hub {huggingface_hub.__version__}"
    print(f"{machine()}, float32, {versions}")
    return 1 if missed else 0


def write_files(folder: Path) -> dict[str, Path]:
    """The large model in both formats, and a small one to import everything with."""
    files = {"ours": folder / "ours.safetensors", "official": folder / "official.pyth"}
    model = UniFormerV2(named_config("L/14@336"))
    print(f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} million parameters")
    save_model(model, files["ours"])
    convert(files["ours"], files["official"], to="official")
    small = named_config("Ti/16", width=64, heads=1, depth=4, global_after=(3,))
    save_model(UniFormerV2(small), folder / "small.safetensors")
    return files


def measure(name: str, file: Path, folder: Path) -> bool:
    weights = sum(tensor.nbytes for tensor in load_model(file).state_dict().values())
    milliseconds = alternate({"load": lambda: load(file), "read": lambda: read(file)}, repeats=5, inner=1)
    ratio = milliseconds["load"] / milliseconds["read"]
    peak = peak_memory(file, folder / "small.safetensors") / weights
    good = ratio <= TIME_LIMIT and peak <= MEMORY_LIMIT
    print(
        f"{'ok  ' if good else 'FAIL'} {name}: {weights / 1e9:.2f} GB of weights; "
        f"loading {milliseconds['load']:.0f} ms, reading {milliseconds['read']:.0f} ms, "
        f"ratio {ratio:.2f} (limit {TIME_LIMIT}); peak memory {peak:.2f} of the weights (limit {MEMORY_LIMIT})"
    )
    return good


def load(file: str | Path) -> UniFormerV2:
    """The model, every page of its tensors touched."""
    model = load_model(file)
    for tensor in model.state_dict().values():
        tensor.view(-1)[:: PAGE // tensor.itemsize].sum()
    return model


def read(file: Path) -> None:
    buffer = bytearray(CHUNK)
    with file.open("rb", buffering=0) as opened:
        while opened.readinto(buffer):
            pass


def peak_memory(file: Path, small: Path) -> int:
    command = [sys.executable, "-c", MEASURE, str(file), str(small)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    return int(done.stdout)


def resident(which: str) -> int:
    """Bytes of the resident set of this process: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{which}:"))


if __name__ == "__main__":
    sys.exit(main())

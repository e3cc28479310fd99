"""Time and memory of merging Kinetics-710 out of millions of rows.

    python benchmarks/kinetics710.py [--rows 3000000]

Draws lists of the three editions (owner's CSV, made-up ids of which many repeat, as in the real ones), merges them in a
fresh process and prints seconds and the peak of its memory.
"""

from __future__ import annotations

import argparse
import random
import resource
import string
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EDITIONS = ("kinetics400", "kinetics600", "kinetics700")
SHARE = {"kinetics400": 0.2, "kinetics600": 0.35, "kinetics700": 0.45}  # of all rows, as in the real sets
HELD_OUT = 0.1  # of the rows of each edition


def draw_list(path: Path, names: tuple[str, ...], rows: int, ids: int, rng: random.Random) -> None:
    """Ids are drawn with repeats, out of a common pool, so that editions overlap."""
    letters = string.ascii_letters + string.digits + "-_"
    with path.open("w", encoding="utf-8") as file:
        file.write("label,youtube_id,time_start,time_end,split\n")
        for _ in range(rows):
            number = rng.randrange(ids)
            video = "".join(letters[(number >> shift) % 64] for shift in range(0, 24, 6)).rjust(11, "x")
            start = rng.randrange(300)
            file.write(f'"{rng.choice(names)}",{video},{start},{start + 10},train\n')


def draw(folder: Path, rows: int) -> list[str]:
    """Arguments of the command that merges what was drawn."""
    from uniformerv2.weights.labels import class_list

    rng = random.Random(0)
    arguments = []
    for edition in EDITIONS:
        arguments.append(f"--{edition}")
        for part, share in (("train", 1 - HELD_OUT), ("val", HELD_OUT / 2), ("test", HELD_OUT / 2)):
            path = folder / f"{edition}_{part}.csv"
            draw_list(path, class_list(edition, order="mmaction2"), int(rows * SHARE[edition] * share), rows // 2, rng)
            arguments.append(str(path))
    return arguments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        arguments = draw(Path(folder), rows)
        command = [sys.executable, "-m", "uniformerv2", "data", "kinetics710", *arguments, "-o", f"{folder}/out"]
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime
    print(f"{rows} rows: {seconds:.1f} s ({cpu:.1f} s of CPU), {used.ru_maxrss / 2**20:.2f} GiB at most")


if __name__ == "__main__":
    main()

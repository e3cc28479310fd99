"""Which attention kernel is the fastest in bfloat16 on this CPU: measured once, in milliseconds, and kept.

With AMX the fused kernel is, without it plain products are, and it depends on lengths and threads too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from uniformerv2.atomic import write_text
from uniformerv2.errors import RecipeError
from uniformerv2.machine import processor_name
from uniformerv2.model.kernels import AttentionCase, AttentionChoices, AttentionKernel, plain_attention, recomputed

ROUNDS = 3
WORK = 2**25  # multiply-adds of the scores in a measured call, at least those of one head: milliseconds
MIN_GAIN = 1.05  # of the fused kernel, below which plain products stay


def measured_choices(cases: Iterable[AttentionCase]) -> AttentionChoices:
    """The faster kernel for each case, from the user's cache, or measured now and put there.

    A cache that is damaged, or cannot be written, is measured again. Without cases nothing is read or measured.
    """
    cases = sorted(cases)
    if not cases:
        return {}
    file, machine = cache_file(), _machine()
    kept = _read(file)
    known = parsed(kept.get(machine, {}))
    choices = {case: known.get(case) or measure(case) for case in cases}
    if not choices.keys() <= known.keys():
        kept[machine] = written(known | choices)
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(kept, indent=2) + "\n")
    return choices


def measure(case: AttentionCase) -> AttentionKernel:
    """Time both kernels in turn; the faster one."""
    heads = max(1, WORK // (case.queries * case.tokens * case.dim))
    # not of torch's generator, whose numbers a training needs
    query, key, value = (
        torch.full((1, heads, count, case.dim), 0.5, dtype=torch.bfloat16, requires_grad=case.training)
        for count in (case.queries, case.tokens, case.tokens)
    )
    kernels: dict[AttentionKernel, Callable[[], Tensor]] = {
        "fused": lambda: F.scaled_dot_product_attention(query, key, value, scale=0.1),
        "plain": lambda: recomputed(partial(plain_attention, scale=0.1), query, key, value),  # as `attend` has it
    }
    seconds: dict[AttentionKernel, float] = dict.fromkeys(kernels, float("inf"))
    for number in range(ROUNDS + 1):  # the first one warms up
        for name, kernel in kernels.items():
            start = time.perf_counter()
            with torch.inference_mode(False), torch.set_grad_enabled(case.training):
                out = kernel()
                if case.training:
                    torch.autograd.grad(out, (query, key, value), torch.ones_like(out))
            if number:
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    return "fused" if seconds["fused"] * MIN_GAIN < seconds["plain"] else "plain"


def read_record(file: Path) -> AttentionChoices:
    """The choices that a run keeps, as `written` gives them; none without the file. Raises RecipeError if damaged."""
    if not file.is_file():
        return {}
    texts = _read(file)
    choices = parsed(texts)
    if len(choices) != len(texts) or not choices:
        raise RecipeError(f"{file}: not the kernels that a run chose; restore it, or start again with --overwrite")
    return choices


def written(choices: AttentionChoices) -> dict[str, str]:
    """Choices as JSON has them: {"queries x tokens x dim, inference": kernel}."""
    return {
        f"{case.queries}x{case.tokens}x{case.dim} {'training' if case.training else 'inference'}": kernel
        for case, kernel in sorted(choices.items())
    }


def parsed(texts: object) -> dict[AttentionCase, AttentionKernel]:
    """Choices out of JSON; what is none is left out."""
    found: dict[AttentionCase, AttentionKernel] = {}
    for name, kernel in texts.items() if isinstance(texts, Mapping) else ():
        sizes, _, mode = str(name).partition(" ")
        numbers = sizes.split("x")
        if len(numbers) == 3 and all(map(str.isdecimal, numbers)) and kernel in ("fused", "plain"):
            queries, tokens, dim = map(int, numbers)
            found[AttentionCase(queries, tokens, dim, mode == "training")] = kernel
    return found


def cache_file() -> Path:
    """Beside the downloads, in the hub's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, "uniformerv2", "attention.json")


def _read(file: Path) -> dict[str, object]:
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _machine() -> str:
    """What a measurement depends on."""
    amx = "with" if torch.cpu._is_amx_tile_supported() else "without"
    return (
        f"{processor_name()} ({torch.backends.cpu.get_cpu_capability()}, {amx} AMX), "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )

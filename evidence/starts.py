"""Image transformers pre-trained on drawn stills in several ways, once a cell starts from them."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from filelock import FileLock

from evidence.claims import Start
from tools.pretrain_stills import pretrain, write_transformer
from uniformerv2.atomic import whole_file
from uniformerv2.progress import say

# the same for all targets: images that the transformer sees, at the rate that the demo's was trained with
PRETRAINING: dict[str, Any] = {"steps": 300, "batch_size": 256, "learning_rate": 2e-3, "seed": 0}
QUICK_STEPS = 60


def pretrained(target: Start, settings: Mapping[str, Any], cache: Path) -> Path:
    """The weights of an image transformer, trained now by one thread where that was not done before.

    Args:
        target: of tools/pretrain_stills.py.
        settings: as PRETRAINING.
        cache: folder of what is kept.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    file = cache / f"stills-{target}-{digest}.safetensors"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if not file.is_file():
            say(f"{target} pre-training on drawn stills, {settings['steps']} steps")
            with redirect_stdout(sys.stderr), whole_file(file) as partial:
                learner = pretrain(target, **settings, workers=0)
                write_transformer(learner, partial, origin=f"evidence, {target}, {json.dumps(settings)}")
    return file

"""The model with `from_pretrained`, `save_pretrained` and `push_to_hub`: one safetensors file that knows itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

from uniformerv2.errors import CheckpointError
from uniformerv2.model import uniformerv2

FILE = "model.safetensors"
CONFIG = {  # the hub counts downloads by this file; it is never read, so that it cannot contradict the weights
    "library_name": "uniformerv2",
    "weights": FILE,
    "note": f"architecture, labels and preprocessing are in the metadata of {FILE}",
}


class UniFormerV2(
    uniformerv2.UniFormerV2,
    ModelHubMixin,
    library_name="uniformerv2",
    pipeline_tag="video-classification",
    paper_url="https://arxiv.org/abs/2211.09552",
):
    __doc__ = uniformerv2.UniFormerV2.__doc__

    # of the checkpoint that it was loaded from; saved with it
    origin: str = ""
    licence: str = ""

    def _save_pretrained(self, save_directory: Path) -> None:
        from uniformerv2.weights.checkpoint import save_model  # it builds on this class

        save_model(self, save_directory / FILE)
        (save_directory / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **options: Any,
    ) -> UniFormerV2:
        """A folder of `save_pretrained` or a repository of the hub; `options` are those of `load_model`."""
        from uniformerv2.weights.checkpoint import load_model

        options.pop("config", None)  # config.json, which the mixin has read
        if Path(model_id).is_dir():
            return load_model(Path(model_id) / FILE, **options)
        try:
            file = hf_hub_download(
                model_id,
                FILE,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        except (EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError) as error:
            raise CheckpointError(
                f"{model_id}: no {FILE} to be had from the hub: {str(error).splitlines()[0]}"
            ) from error
        return load_model(file, **options)

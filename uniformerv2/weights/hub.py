"""The model with `from_pretrained`, `save_pretrained` and `push_to_hub`: one safetensors file that knows itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

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
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **options: Any,
    ) -> UniFormerV2:
        """Load a model from a repository of the hub or from a folder that `save_pretrained` wrote.

        Args:
            pretrained_model_name_or_path: "owner/name", or a folder.
            revision, cache_dir, force_download, local_files_only, token: as everywhere in huggingface_hub.
            options: those of `load_model`.

        Raises:
            CheckpointError: there is no such file, or as `load_model`.
        """
        try:
            return super().from_pretrained(
                pretrained_model_name_or_path,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                options=options,
            )
        except (EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"{pretrained_model_name_or_path}: no {FILE} to be had from the hub: {reason}"
            ) from error

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
        **model_kwargs: Any,  # the options, and what the mixin found in config.json
    ) -> UniFormerV2:
        from uniformerv2.weights.checkpoint import load_model

        if Path(model_id).is_dir():
            return load_model(Path(model_id) / FILE, **model_kwargs["options"])
        file = hf_hub_download(
            model_id,
            FILE,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        return load_model(file, **model_kwargs["options"])

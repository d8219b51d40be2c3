# SPDX-License-Identifier: Apache-2.0
"""Finds a model by directory or hub id and loads it with its tokenizer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DTYPES = ("auto", "float32", "bfloat16", "float16")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from, as given on the command line."""

    name: str
    revision: str | None = None
    local_files_only: bool = False
    trust_remote_code: bool = False

    @property
    def is_directory(self) -> bool:
        """Whether the name is that of a directory here, rather than a hub id."""
        return Path(self.name).is_dir()

    @property
    def hub_arguments(self) -> dict[str, Any]:
        """The keyword arguments that every ``from_pretrained`` takes."""
        return {
            "revision": self.revision or "main",
            "local_files_only": self.local_files_only,
            "trust_remote_code": self.trust_remote_code,
        }

    def check(self, operation: str) -> None:
        """Refuses a path that is not a checkpoint: the hub's own message about it would be about hub ids."""
        if self.is_directory:
            if not (Path(self.name) / "config.json").is_file():
                raise ValueError(
                    f"[{operation}] {self.name} holds no config.json: not a checkpoint of Transformers"
                )
        elif Path(self.name).exists():
            raise ValueError(
                f"[{operation}] {self.name} is a file; give the directory of a checkpoint, or a hub id"
            )
        elif self.name.startswith((".", "/", "~")) or self.name.count("/") > 1 or not self.name:
            raise ValueError(f"[{operation}] no such directory: {self.name!r}")

    def folder(self) -> Path | None:
        """The directory of the checkpoint's files, perhaps in the hub's cache; None where there is none."""
        if self.is_directory:
            return Path(self.name)
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.name, "config.json", revision=self.revision)
        return Path(found).parent if isinstance(found, str) else None


def check_device_and_dtype(operation: str, device: str, dtype: str) -> None:
    """Refuses what torch does not know or this machine does not have."""
    import torch

    if dtype not in _DTYPES:
        raise ValueError(f"[{operation}] dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    if device == "auto":
        return
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise ValueError(f"[{operation}] device must be auto, cpu, cuda or cuda:N, got {device!r}") from None
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"[{operation}] device {device!r} asked for, {torch.cuda.device_count()} CUDA devices found"
        )


def load_model(source: ModelSource, *, device: str, dtype: str, quiet: bool) -> PreTrainedModel:
    """Loads a model for inference, whole, with per-layer expert counts, or packed."""
    import torch

    from stun_ext.experts_backend import is_packed
    from stun_ext.loading import from_pretrained

    if quiet:
        hush_transformers()
    model = from_pretrained(
        source.name, dtype="auto" if dtype == "auto" else getattr(torch, dtype), **source.hub_arguments
    )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() and not is_packed(model) else "cpu"
    elif is_packed(model) and device != "cpu":
        raise ValueError(
            f"[load] {source.name} has packed experts, which compute on the CPU, got device {device!r}"
        )
    torch.nn.Module.to(model, torch.device(device))  # Transformers' own is not typed
    return model


def load_tokenizer(source: ModelSource) -> Any:
    """The checkpoint's tokenizer, or None where it has none: pruning on token batches needs none."""
    from transformers import AutoTokenizer

    folder = source.folder()
    if (
        source.is_directory
        and folder is not None
        and not any((folder / name).is_file() for name in _TOKENIZER_FILES)
    ):
        return None
    return AutoTokenizer.from_pretrained(source.name, **source.hub_arguments)


def hush_transformers() -> None:
    """No log lines below errors, no bar while weights are loaded."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

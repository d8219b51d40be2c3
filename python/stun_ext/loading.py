# SPDX-License-Identifier: Apache-2.0
"""Loading a model: dense checkpoints, those with different numbers of experts per layer, and packed ones."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from stun_ext import models, ops
from stun_ext.packed_file import FILE_NAME, ExpertsEntry, PackedFile

_HUB_KEYWORDS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)


def from_pretrained(path: str | os.PathLike[str], **kwargs: Any) -> PreTrainedModel:
    """Loads a causal language model as ``AutoModelForCausalLM.from_pretrained`` does, ragged and packed ones too.

    A ragged checkpoint has layers with different numbers of experts; see `stun_ext.models.from_pretrained`.

    A packed one (``stun-ext pack``) has its experts in ``model.stun.safetensors``. The file is mapped and its weights
    are used where they lie: they take no memory but the page cache's, and the dense experts are never there. Every
    matrix is checked before it is used. The model is then as `stun_ext.sparsify` leaves it: for inference, on the CPU.

    Args:
        path: Directory or hub id.
        **kwargs: As for ``AutoModelForCausalLM.from_pretrained``. For a packed checkpoint, ``dtype`` is that of all
            other weights, and of the activations.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: A damaged packed file, or one of another model (the tensor is named); a ``device_map`` or
            ``experts_implementation`` that packed experts cannot follow; or as `stun_ext.models.from_pretrained`.
    """
    packed = _packed_path(path, kwargs)
    return models.from_pretrained(path, **kwargs) if packed is None else _load_packed(path, packed, kwargs)


def _packed_path(path: str | os.PathLike[str], kwargs: dict[str, Any]) -> Path | None:
    """The file of packed experts, of a directory or (downloaded if need be) of a repository on the hub."""
    folder = Path(path) / kwargs.get("subfolder", "")
    if Path(path).is_dir():
        return folder / FILE_NAME if (folder / FILE_NAME).is_file() else None
    hub = {name: kwargs[name] for name in _HUB_KEYWORDS if name in kwargs}
    found = cached_file(
        str(path),
        FILE_NAME,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_connection_errors=False,
        **hub,
    )
    return None if found is None else Path(found)


def _load_packed(path: str | os.PathLike[str], packed: Path, kwargs: dict[str, Any]) -> PreTrainedModel:
    from stun_ext.experts_backend import IMPLEMENTATION, PackedExperts, attach, use_packed_experts

    device_map = kwargs.get("device_map")
    if device_map not in (None, "cpu") and str(device_map) not in ("{'': 'cpu'}", "cpu"):
        raise ValueError(
            f"[from_pretrained] packed experts compute on the CPU, got device_map={device_map!r}"
        )
    if kwargs.pop("experts_implementation", None) not in (None, IMPLEMENTATION):
        raise ValueError(f"[from_pretrained] {packed} can be computed by {IMPLEMENTATION!r} alone")
    kwargs.pop("variant", None)  # there is one
    file = PackedFile(packed)
    by_module: dict[str, list[Any]] = {}
    for entry in file.entries:
        by_module.setdefault(entry.name.rpartition(".")[0], []).append(entry)
    for module_name, entries in by_module.items():
        names = [entry.name.rpartition(".")[2] for entry in entries]
        if len(entries) != 2 or not names[0].endswith("up_proj") or names[1] != "down_proj":
            raise ValueError(
                f"[from_pretrained] {packed}: {module_name} must have an up and a down projection"
            )
    # Before any weight is loaded: a damaged file is refused at once.
    experts = {
        name: PackedExperts(
            *([_weight(file, entry, e) for e in range(entry.num_experts)] for entry in entries)
        )
        for name, entries in by_module.items()
    }
    absent = {entry.name: entry.parameter_shape for entry in file.entries}
    loaded = models.from_pretrained(path, absent=absent, variant="dense", **kwargs)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    for name, module in model.named_modules():
        if hasattr(module, "_apply_gate") and hasattr(module, "is_transposed") and name not in experts:
            raise ValueError(f"[from_pretrained] {packed} lacks the experts of {name}")
    for name, weights in experts.items():
        attach(model.get_submodule(name), weights)
    use_packed_experts(model)
    return loaded


def _weight(file: PackedFile, entry: ExpertsEntry, expert: int) -> ops.PackedMatrix | torch.Tensor:
    """One expert's matrix where it is mapped."""
    matrix = file.matrix(entry, expert)
    if isinstance(matrix, ops.PackedMatrix):
        return matrix
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")  # nor is it written to
        dense = torch.from_numpy(matrix)
    return dense.view(torch.bfloat16) if entry.dtype == "bfloat16" else dense

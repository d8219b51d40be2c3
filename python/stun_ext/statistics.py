# SPDX-License-Identifier: Apache-2.0
"""What one calibration pass measures: plain tensors, saved and loaded as one safetensors file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from stun_ext.files import replaced

_FORMAT = "stun_ext.statistics.v1"
#: name, dtype and number of axes of length E of the per-layer tensors.
_FIELDS: tuple[tuple[str, torch.dtype, int], ...] = (
    ("token_count", torch.int64, 1),
    ("norm_sum", torch.float64, 1),
    ("norm_sq_sum", torch.float64, 1),
    ("weighted_norm_sum", torch.float64, 1),
    ("coactivation", torch.int64, 2),
    ("gram", torch.float64, 2),
)
_INPUT_FIELDS = ("input_sq_norm", "gated_input_sq_norm")


@dataclass
class LayerStatistics:
    """Sums over the calibration tokens of one MoE layer, E experts, all on the CPU.

    For a token t routed to expert i: g is the gate weight that the router gave it, f the expert's output
    before that weight, x an input of the expert. Padding tokens are in none of the sums.

    Attributes:
        token_count: int64 ``[E]``, tokens routed to each expert.
        norm_sum: float64 ``[E]``, Σ ‖f‖₂.
        norm_sq_sum: float64 ``[E]``, Σ ‖f‖₂².
        weighted_norm_sum: float64 ``[E]``, Σ g·‖f‖₂.
        coactivation: int64 ``[E, E]``, tokens routed to both i and j; symmetric, zero diagonal.
        gram: float64 ``[E, E]``, F_ij = Σ g_i g_j ‖f_i‖ ‖f_j‖ over tokens routed to both (HOPE, arXiv
            2609.18916); its diagonal is Σ g²‖f‖².
        input_sq_norm: for each weight of the experts by name, float32 ``[E, in]``: Σ x_j² over the routed
            tokens (the ‖X_j‖² of Wanda).
        gated_input_sq_norm: likewise Σ (g·x_j)² (MoE-Pruner).
        num_tokens: tokens that reached the layer.
        starved: experts with ``token_count`` 0, ascending. Their rows of the two dictionaries come from
            running a sample of the layer's tokens through them, with gate weight 1; every other sum of theirs
            is 0.
    """

    token_count: torch.Tensor
    norm_sum: torch.Tensor
    norm_sq_sum: torch.Tensor
    weighted_norm_sum: torch.Tensor
    coactivation: torch.Tensor
    gram: torch.Tensor
    input_sq_norm: dict[str, torch.Tensor]
    gated_input_sq_norm: dict[str, torch.Tensor]
    num_tokens: int
    starved: list[int] = field(default_factory=list)

    @property
    def num_experts(self) -> int:
        """E."""
        return int(self.token_count.shape[0])

    def check(self, where: str) -> None:
        """Raise ValueError, its message starting with ``where``, unless the tensors fit each other."""
        experts = self.num_experts if self.token_count.dim() == 1 else -1
        for name, dtype, axes in _FIELDS:
            tensor: torch.Tensor = getattr(self, name)
            if tensor.dtype != dtype or tensor.shape != (experts,) * axes:
                raise ValueError(
                    f"{where}: {name} must be {dtype} with shape {[experts] * axes}, "
                    f"got {tensor.dtype} {list(tensor.shape)}"
                )
            if not bool(torch.isfinite(tensor).all()) or bool((tensor < 0).any()):
                raise ValueError(f"{where}: {name} must be finite and not negative")
        if not torch.equal(self.coactivation, self.coactivation.T) or bool(
            self.coactivation.diagonal().any()
        ):
            raise ValueError(f"{where}: coactivation must be symmetric with a zero diagonal")
        if self.input_sq_norm.keys() != self.gated_input_sq_norm.keys():
            raise ValueError(f"{where}: input_sq_norm and gated_input_sq_norm must have the same names")
        for kind in _INPUT_FIELDS:
            for name, tensor in getattr(self, kind).items():
                if tensor.dtype != torch.float32 or tensor.dim() != 2 or tensor.shape[0] != experts:
                    raise ValueError(
                        f"{where}: {kind} of {name} must be torch.float32 with shape [{experts}, inputs], "
                        f"got {tensor.dtype} {list(tensor.shape)}"
                    )
                if not bool(torch.isfinite(tensor).all()) or bool((tensor < 0).any()):
                    raise ValueError(f"{where}: {kind} of {name} must be finite and not negative")
        if self.starved != torch.nonzero(self.token_count == 0).flatten().tolist():
            raise ValueError(
                f"{where}: starved must list the experts whose token_count is 0, got {self.starved}"
            )


@dataclass
class Statistics:
    """Everything that one calibration pass measured.

    Attributes:
        layers: one entry per MoE layer, in the order of ``MoEModel.layers``; empty for dense models.
        linears: float32 ``[in]`` Σ x_j² for each plain linear module asked for, by dotted name.
        source: what the text was, for people.
        num_samples: sequences seen.
        num_tokens: tokens seen, padding not counted.
    """

    layers: list[LayerStatistics]
    linears: dict[str, torch.Tensor] = field(default_factory=dict)
    source: str = ""
    num_samples: int = 0
    num_tokens: int = 0

    def check(self, where: str) -> None:
        """Raise ValueError, its message starting with ``where``, unless all tensors are valid."""
        for index, layer in enumerate(self.layers):
            layer.check(f"{where} MoE layer {index}")
        for name, tensor in self.linears.items():
            if tensor.dtype != torch.float32 or tensor.dim() != 1:
                raise ValueError(
                    f"{where}: linears[{name!r}] must be torch.float32 with one axis, "
                    f"got {tensor.dtype} {list(tensor.shape)}"
                )
            if not bool(torch.isfinite(tensor).all()) or bool((tensor < 0).any()):
                raise ValueError(f"{where}: linears[{name!r}] must be finite and not negative")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file; an existing file is replaced, whole or not at all."""
        self.check("[Statistics.save]")
        tensors: dict[str, torch.Tensor] = {}
        for index, layer in enumerate(self.layers):
            for name, _, _ in _FIELDS:
                tensors[f"layers.{index}.{name}"] = getattr(layer, name).contiguous()
            for kind in _INPUT_FIELDS:
                for name, tensor in getattr(layer, kind).items():
                    tensors[f"layers.{index}.{kind}.{name}"] = tensor.contiguous()
        for name, tensor in self.linears.items():
            tensors[f"linears.{name}"] = tensor.contiguous()
        header = {
            "source": self.source,
            "num_samples": self.num_samples,
            "num_tokens": self.num_tokens,
            "layers": [{"num_tokens": layer.num_tokens, "starved": layer.starved} for layer in self.layers],
        }
        with replaced(path) as temporary:
            safetensors.torch.save_file(
                tensors, temporary, metadata={"format": _FORMAT, "statistics": json.dumps(header)}
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Statistics:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a statistics file, or its tensors do not fit each other.
        """
        where = f"[Statistics.load] {os.fspath(path)}"
        if not Path(path).is_file():
            raise FileNotFoundError(f"{where}: no such file")
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{where}: not a safetensors file ({error})") from error
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"{where}: format must be {_FORMAT!r}, got {metadata.get('format')!r}")
        try:
            header = json.loads(metadata["statistics"])
            layers = [
                _take_layer(tensors, f"layers.{index}.", int(entry["num_tokens"]), list(entry["starved"]))
                for index, entry in enumerate(header["layers"])
            ]
            linears = {
                name.removeprefix("linears."): tensors.pop(name)
                for name in list(tensors)
                if name.startswith("linears.")
            }
            statistics = cls(
                layers, linears, str(header["source"]), int(header["num_samples"]), int(header["num_tokens"])
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{where}: incomplete, {error} is missing or wrong") from error
        if tensors:
            raise ValueError(f"{where}: unknown tensor {min(tensors)!r}")
        statistics.check(where)
        return statistics


def _take_layer(
    tensors: dict[str, torch.Tensor], prefix: str, num_tokens: int, starved: list[int]
) -> LayerStatistics:
    """Move the tensors of one layer out of ``tensors``."""
    fields: dict[str, Any] = {name: tensors.pop(prefix + name) for name, _, _ in _FIELDS}
    for kind in _INPUT_FIELDS:
        start = f"{prefix}{kind}."
        fields[kind] = {
            name.removeprefix(start): tensors.pop(name) for name in sorted(tensors) if name.startswith(start)
        }
    return LayerStatistics(**fields, num_tokens=num_tokens, starved=starved)

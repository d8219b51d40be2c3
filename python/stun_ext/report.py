# SPDX-License-Identifier: Apache-2.0
"""What a pruning run did, counted on the result: kept experts, sparsities asked and reached, kurtosis, versions."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import stun_ext
from stun_ext.recipe import Recipe


@dataclass
class LayerReport:
    """One decoder layer with pruned matrices. Counts are of weights in scope."""

    name: str
    index: int
    parameters_before: int
    parameters_after: int = 0  # after whole experts went
    zeros: int = 0  # exact zeros among parameters_after
    asked_weight_sparsity: float = 0.0
    num_experts_before: int = 0  # 0 for a layer without routed experts
    kept: list[int] = field(default_factory=list)  # original expert ids in their new order
    clusters: list[int] | None = None  # lowest expert of each expert's cluster
    averaged: dict[int, list[int]] = field(default_factory=dict)  # kept id -> experts it is the mean of
    never_routed: list[int] = field(default_factory=list)  # original ids without a calibration token
    kurtosis_before: float = math.nan
    kurtosis_after_experts: float = math.nan
    kurtosis_after_weights: float = math.nan  # of the weights that are not zero

    @property
    def weight_sparsity(self) -> float:
        """Share of exact zeros among the weights that stayed."""
        return self.zeros / self.parameters_after if self.parameters_after else 0.0

    @property
    def sparsity(self) -> float:
        """Share of this layer's weights in scope that are removed or zero."""
        removed = self.parameters_before - self.parameters_after
        return (removed + self.zeros) / self.parameters_before if self.parameters_before else 0.0


@dataclass
class PruneReport:
    """Result of :func:`stun_ext.prune`."""

    recipe: Recipe
    family: str
    calibration: str  # what the statistics came from
    calibration_tokens: int
    layers: list[LayerReport]
    dry_run: bool = False
    requested_experts: int = 0
    threshold: float | None = None  # of per_layer="global"
    model_parameters_before: int = 0
    model_parameters_after: int = 0
    bytes_before: int = 0  # of the checkpoint's tensors; 0 for a model in memory
    bytes_after: int = 0
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def parameters_before(self) -> int:
        """Weights in scope before."""
        return sum(layer.parameters_before for layer in self.layers)

    @property
    def parameters_after(self) -> int:
        """Weights in scope that still exist."""
        return sum(layer.parameters_after for layer in self.layers)

    @property
    def zeros(self) -> int:
        """Exact zeros among them."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def asked_sparsity(self) -> float | None:
        """What was asked over the scope; None where a pattern or stage 1 alone decides."""
        return (
            None
            if self.recipe.nm is not None or self.recipe.weight_method == "none"
            else self.recipe.sparsity
        )

    @property
    def sparsity(self) -> float:
        """What was reached: (removed + zero) / before, counted on the result."""
        before = self.parameters_before
        return (before - self.parameters_after + self.zeros) / before if before else 0.0

    @property
    def expert_sparsity(self) -> float:
        """Share of the experts removed."""
        before = sum(layer.num_experts_before for layer in self.layers)
        return 1.0 - self.kept_experts / before if before else 0.0

    @property
    def weight_sparsity(self) -> float:
        """Share of zeros among the weights that exist."""
        return self.zeros / self.parameters_after if self.parameters_after else 0.0

    @property
    def kept_experts(self) -> int:
        """Experts kept over all layers."""
        return sum(len(layer.kept) for layer in self.layers)

    @property
    def kept(self) -> dict[int, list[int]]:
        """Decoder layer index -> original expert ids kept, in their new order."""
        return {layer.index: layer.kept for layer in self.layers if layer.num_experts_before}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; NaN becomes None."""
        values = asdict(self)
        values["recipe"] = self.recipe.to_dict()
        for name in (
            "asked_sparsity", "sparsity", "expert_sparsity", "weight_sparsity", "kept_experts", "parameters_before",
            "parameters_after", "zeros",
        ):  # fmt: skip
            values[name] = getattr(self, name)
        for layer, plain in zip(self.layers, values["layers"], strict=True):
            plain["weight_sparsity"] = layer.weight_sparsity
            plain["sparsity"] = layer.sparsity
        cleaned = _without_nan(values)
        assert isinstance(cleaned, dict)
        return cleaned

    def to_json(self) -> str:
        """The report as one JSON document."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes ``to_json`` to a file."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def table(self) -> str:
        """A few aligned lines for a terminal or a log."""
        lines = [self.summary(), f"calibration: {self.calibration}"]
        lines.append(f"{'layer':<28}{'experts':>12}{'weights zeroed':>16}{'in total':>10}{'kurtosis':>22}")
        for layer in self.layers:
            experts = f"{len(layer.kept)}/{layer.num_experts_before}" if layer.num_experts_before else "-"
            kurtosis = " > ".join(
                "-" if math.isnan(value) else f"{value:.4g}"
                for value in (
                    layer.kurtosis_before,
                    layer.kurtosis_after_experts,
                    layer.kurtosis_after_weights,
                )
            )
            lines.append(
                f"{layer.name[-27:]:<28}{experts:>12}{layer.weight_sparsity:>15.2%} "
                f"{layer.sparsity:>9.2%}{kurtosis:>22}"
            )
        if self.bytes_before:
            verb = "would be" if self.dry_run else "are"
            lines.append(f"{self.bytes_after:,} of {self.bytes_before:,} bytes of tensors {verb} kept")
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)

    def summary(self) -> str:
        """One line: what was asked and what was reached."""
        asked = "" if self.asked_sparsity is None else f" (asked {self.asked_sparsity:.2%})"
        verb = "would be" if self.dry_run else "are"
        experts = sum(layer.num_experts_before for layer in self.layers)
        removed = f", {experts - self.kept_experts} of {experts} experts removed" if experts else ""
        return (
            f"{self.sparsity:.2%}{asked} of {self.parameters_before:,} weights in scope {verb} gone"
            f"{removed}, {self.weight_sparsity:.2%} of the rest zero"
        )

    def __str__(self) -> str:
        return self.table()


def never_routed_note(row: LayerReport) -> str:
    """What the user should know of a layer with experts that no calibration token reached."""
    kept = set(row.kept) & set(row.never_routed)
    return (
        f"{row.name}: no calibration token reached experts {row.never_routed}; the input norms of the "
        f"{len(kept)} of them that are kept come from a sample of the layer's tokens"
    )


def versions() -> dict[str, str]:
    """Versions of this package and of what decides beside it."""
    found = {"stun_ext": stun_ext.__version__}
    for name in ("torch", "transformers", "numpy"):
        found[name] = importlib.metadata.version(name)
    return found


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return value

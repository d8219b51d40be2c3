# SPDX-License-Identifier: Apache-2.0
"""Every setting of a pruning run, validated once, saved as YAML or JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CRITERIA = ("weighted_norm_sum", "reap", "frequency", "man", "msan", "random", "similarity")
SCORES = ("weighted_norm_sum", "reap", "frequency", "man", "msan")
LINKAGES = ("star", "complete", "average", "single")
REPRESENTATIVES = ("nearest", "router", "mean", "score")
PER_LAYER = ("uniform", "global")
WEIGHT_METHODS = ("wanda", "gated_wanda", "magnitude", "owl", "none")
WEIGHT_ALLOCATIONS = ("uniform", "owl")
SCOPES = ("experts", "shared_experts", "attention", "mlp")


def _setting(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to prune and how. Immutable; an illegal value raises ``ValueError`` naming the field and what is legal.

    The names of criteria and methods are those of the papers; see docs in README.md, "What the settings mean".
    """

    sparsity: float = _setting(
        0.5, "Share of the weights in scope to remove in total, by both stages together, in [0, 1)."
    )
    expert_sparsity: float | None = _setting(
        None,
        "Share of the experts stage 1 removes, in [0, 1). Default: chosen from the sparsity (0 turns stage 1 off).",
    )
    criterion: str = _setting(
        "weighted_norm_sum", "How stage 1 chooses experts: a saliency, or similarity clustering.", CRITERIA
    )
    similarity: tuple[float, float] = _setting(
        (1.0, 0.0), "Weights (router distance, co-activation) of the similarity, STUN stage 1."
    )
    normalize_router: bool = _setting(False, "Divide router distances by the router's Frobenius norm.")
    linkage: str = _setting(
        "complete", "Clustering rule of criterion=similarity; star is the released code's.", LINKAGES
    )
    representative: str = _setting(
        "nearest",
        "Which expert stands for a cluster: its weights or its router row nearest to the mean, the mean itself, or the "
        "best score.",
        REPRESENTATIVES,
    )
    representative_score: str = _setting(
        "weighted_norm_sum", "Saliency used by representative=score.", SCORES
    )
    mean_limit: int = _setting(
        3,
        "representative=mean averages clusters with fewer members than this (STUN's kappa); others keep the nearest.",
    )
    per_layer: str = _setting(
        "uniform",
        "The same number of experts in every layer (what stock loaders need), or one global threshold.",
        PER_LAYER,
    )
    expert_multiple: int = _setting(1, "Keep a multiple of this many experts per layer.")
    min_experts: int | None = _setting(None, "Least experts kept in a layer. Default: the model's top-k.")
    weight_method: str = _setting(
        "wanda",
        "Score of stage 2 (owl: Wanda with OWL's layer sparsities; none: stage 1 alone).",
        WEIGHT_METHODS,
    )
    weight_allocation: str = _setting(
        "uniform", "The same sparsity in every layer, or OWL's outlier-weighted ones.", WEIGHT_ALLOCATIONS
    )
    owl_threshold: float = _setting(5.0, "OWL's M: a score above M times the layer's mean is an outlier.")
    owl_lambda: float = _setting(0.08, "OWL's lambda: layer sparsities lie within this of their mean.")
    pattern: str | None = _setting(
        None, "n:m sparsity such as 2:4 (n kept of every m). Default: unstructured."
    )
    scope: tuple[str, ...] = _setting(
        ("experts",), "Which matrices are pruned: experts, shared_experts, attention, mlp (dense MLPs)."
    )
    num_calibration_samples: int = _setting(128, "Calibration sequences.")
    max_seq_length: int = _setting(512, "Tokens per calibration sequence.")
    batch_size: int = _setting(8, "Calibration sequences per forward pass.")
    seed: int = _setting(0, "Seed of self-sampled calibration text and of criterion=random.")

    def __post_init__(self) -> None:
        for name in ("similarity", "scope"):  # YAML and JSON give lists, a command line one string
            value = getattr(self, name)
            if isinstance(value, str):
                value = value.split(",")
            if isinstance(value, (list, tuple)):
                object.__setattr__(self, name, tuple(value))
        if self.weight_method == "owl":  # OWL is Wanda's score with its own layer sparsities
            object.__setattr__(self, "weight_method", "wanda")
            object.__setattr__(self, "weight_allocation", "owl")
        self._check_numbers()
        for setting in dataclasses.fields(self):
            choices = setting.metadata["choices"]
            value = getattr(self, setting.name)
            if choices and value not in choices:
                raise ValueError(
                    f"[Recipe] {setting.name} must be one of {', '.join(choices)}, got {value!r}"
                )
        if (
            not self.scope
            or any(name not in SCOPES for name in self.scope)
            or len(set(self.scope)) != len(self.scope)
        ):
            raise ValueError(
                f"[Recipe] scope must name some of {', '.join(SCOPES)}, each once, got {self.scope!r}"
            )
        if self.pattern is not None and self.weight_allocation == "owl":
            raise ValueError(
                f"[Recipe] pattern {self.pattern!r} fixes every layer's sparsity: OWL cannot apply"
            )

    def _check_numbers(self) -> None:
        _number(self, "sparsity", 0.0, 1.0, open_above=True)
        if self.expert_sparsity is not None:
            _number(self, "expert_sparsity", 0.0, 1.0, open_above=True)
        _number(self, "owl_threshold", 0.0, math.inf, open_above=True)
        _number(self, "owl_lambda", 0.0, 0.5)
        for name, least in (
            ("mean_limit", 2), ("expert_multiple", 1), ("num_calibration_samples", 1), ("max_seq_length", 2),
            ("batch_size", 1), ("seed", 0), ("min_experts", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if name == "min_experts" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"[Recipe] {name} must be an integer of at least {least}, got {value!r}")
        if not isinstance(self.normalize_router, bool):
            raise ValueError(
                f"[Recipe] normalize_router must be true or false, got {self.normalize_router!r}"
            )
        if len(self.similarity) != 2:
            raise ValueError(f"[Recipe] similarity must be two numbers, got {self.similarity!r}")
        try:
            weights = (float(self.similarity[0]), float(self.similarity[1]))
        except (TypeError, ValueError):
            raise ValueError(f"[Recipe] similarity must be two numbers, got {self.similarity!r}") from None
        if not all(math.isfinite(w) and w >= 0 for w in weights) or weights == (0.0, 0.0):
            raise ValueError(
                f"[Recipe] similarity must be two numbers >= 0, not both 0, got {self.similarity!r}"
            )
        object.__setattr__(self, "similarity", weights)
        if self.pattern is not None:
            match = re.fullmatch(r"(\d+):(\d+)", self.pattern) if isinstance(self.pattern, str) else None
            if match is None or not 1 <= int(match[1]) < int(match[2]):
                raise ValueError(
                    f"[Recipe] pattern must be 'n:m' with 1 <= n < m, such as '2:4', got {self.pattern!r}"
                )

    @property
    def nm(self) -> tuple[int, int] | None:
        """The pattern as (n, m)."""
        if self.pattern is None:
            return None
        n, m = self.pattern.split(":")
        return int(n), int(m)

    @property
    def needs_statistics(self) -> bool:
        """Whether any setting needs a calibration pass."""
        stage1 = self.expert_share() > 0 and (
            self.criterion in SCORES
            or (self.criterion == "similarity" and (self.similarity[1] > 0 or self.representative == "score"))
        )
        return stage1 or self.weight_method in ("wanda", "gated_wanda")

    @property
    def has_default_split(self) -> bool:
        """Whether nothing in the recipe says what share of the experts should go."""
        return self.expert_sparsity is None and self.weight_method != "none" and self.nm is None

    def expert_share(self, num_experts: int | None = None) -> float:
        """Share of the experts that stage 1 is asked to remove, in [0, 1).

        Args:
            num_experts: experts of the layer, which the default depends on; None stands for many.
        """
        if self.expert_sparsity is not None:
            return self.expert_sparsity
        if self.weight_method == "none":
            return self.sparsity
        if self.nm is not None:  # the pattern fixes what stage 2 gives: experts bring the rest
            n, m = self.nm
            return max(0.0, 1.0 - (1.0 - self.sparsity) * m / n)
        return default_expert_sparsity(self.sparsity, num_experts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for YAML or JSON."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any], origin: str = "Recipe") -> Recipe:
        """Builds a recipe; an unknown field raises ``ValueError`` naming it."""
        known = {setting.name for setting in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"[{origin}] unknown setting {unknown[0]!r}; legal: {', '.join(sorted(known))}")
        return cls(**values)

    def replace(self, **changes: Any) -> Recipe:
        """A copy with other values, validated."""
        return Recipe.from_dict({**self.to_dict(), **changes})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes YAML or, for a path ending in ``.json``, JSON."""
        path = Path(path)
        if path.suffix == ".json":
            text = json.dumps(self.to_dict(), indent=2) + "\n"
        else:
            import yaml

            text = yaml.safe_dump(self.to_dict(), sort_keys=False)
        path.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Reads what ``save`` wrote; missing fields take their defaults.

        Raises:
            ValueError: the file is not a mapping of known settings to legal values.
        """
        path = Path(path)
        text = path.read_text(encoding="utf-8")
        try:
            if path.suffix == ".json":
                values = json.loads(text)
            else:
                import yaml

                values = yaml.safe_load(text)
        except Exception as error:  # the parsers share no base class
            raise ValueError(f"[Recipe.load] {path} is not readable: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(
                f"[Recipe.load] {path} must hold a mapping of settings, got {type(values).__name__}"
            )
        return cls.from_dict(values, origin=f"Recipe.load {path}")


def _number(recipe: Recipe, name: str, low: float, high: float, *, open_above: bool = False) -> None:
    value = getattr(recipe, name)
    legal = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    if not legal or (open_above and value == high):
        bracket = ")" if open_above else "]"
        raise ValueError(f"[Recipe] {name} must be in [{low:g}, {high:g}{bracket}, got {value!r}")


def default_expert_sparsity(sparsity: float, num_experts: int | None = None) -> float:
    """The share of experts removed when none is asked for: what the sparsity exceeds 37.5% by, less for few experts.

    Removing experts costs more than zeroing the same share of weights at low totals and less at high ones, so the best
    split moves with the total. Few, large experts are worth more each: below 32 the share shrinks in proportion.
    README.md, "Defaults", has the measurements behind this line.
    """
    scale = 1.0 if num_experts is None else min(1.0, num_experts / 32)
    return max(0.0, sparsity - 0.375) * scale

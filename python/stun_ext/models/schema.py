# SPDX-License-Identifier: Apache-2.0
"""Which dimensions of which tensors, and which integer attributes of which modules, count experts.

Found by experiment instead of tables per model class: the model's class is built twice on the meta
device, from its config with E experts and with 2E experts, and whatever changed counts experts.
Two points determine the rule, a size being factor·E + extra with factor = 1 or extra = 0, so every other
number of experts follows without building the model again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .config_keys import (
    KeyPath,
    expert_count_paths,
    get_count,
    set_count,
    without_per_layer_counts,
)


@dataclass(frozen=True)
class ExpertTensor:
    """A parameter or buffer with one dimension that is indexed by experts, of size factor·E + extra.

    `factor` > 1: experts stored one after the other in a flattened dimension (DBRX). `extra` > 0: further
    rows after the experts, such as zero experts or shared sinks, which stay. At most one of the two is not
    trivial.

    Attributes:
        name: Its full name in the model.
        ndim: Its number of dimensions.
        axis: The dimension indexed by experts.
        factor: Entries per expert.
        extra: Entries after the experts.
    """

    name: str
    ndim: int
    axis: int
    factor: int = 1
    extra: int = 0

    @property
    def holds_matrices(self) -> bool:
        """Whether one expert's share of the tensor is at least a matrix, unlike router rows and biases."""
        return self.ndim >= 3 or (self.ndim == 2 and self.factor > 1)

    def size(self, num_experts: int) -> int:
        """The size of the dimension with `num_experts` experts."""
        return self.factor * num_experts + self.extra

    def num_experts(self, shape: tuple[int, ...]) -> int | None:
        """The number of experts in a tensor of this shape; None when no number of experts gives it."""
        count, rest = divmod(shape[self.axis] - self.extra, self.factor)
        return count if rest == 0 and count > 0 else None

    def index(self, experts: torch.Tensor, num_experts: int) -> torch.Tensor:
        """Positions along the dimension of the given experts, in their order, followed by the extra rows.

        Args:
            experts: Expert ids, int64 [K].
            num_experts: How many experts the dimension holds now.
        """
        positions = (experts[:, None] * self.factor + torch.arange(self.factor)).reshape(-1)
        end = num_experts * self.factor
        return torch.cat([positions, torch.arange(end, end + self.extra)])


@dataclass(frozen=True)
class ExpertAttribute:
    """An integer attribute of a module whose value is scale·E + offset."""

    module: str
    name: str
    scale: Fraction
    offset: int = 0

    def value(self, num_experts: int) -> int | None:
        """The attribute's value with `num_experts` experts; None when that is not an integer."""
        value = self.scale * num_experts + self.offset
        return int(value) if value.denominator == 1 else None


@dataclass
class Schema:
    """Everything of a model class and config that depends on the number of experts."""

    num_experts: int
    paths: list[KeyPath]
    tensors: dict[str, ExpertTensor] = field(default_factory=dict)
    attributes: list[ExpertAttribute] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)  # what changed with E in a way that cannot be sliced
    shapes: dict[str, tuple[int, ...]] = field(
        default_factory=dict
    )  # of all tensors, with num_experts experts

    def shape(self, name: str, num_experts: int) -> tuple[int, ...]:
        """The shape of tensor `name` in a model with `num_experts` experts."""
        shape = list(self.shapes[name])
        if name in self.tensors:
            spec = self.tensors[name]
            shape[spec.axis] = spec.size(num_experts)
        return tuple(shape)

    def set_num_experts(self, num_experts: int) -> None:
        """Makes `num_experts` the number that the recorded shapes belong to."""
        self.shapes = {name: self.shape(name, num_experts) for name in self.shapes}
        self.num_experts = num_experts


def named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """All parameters and buffers, those that are not saved and the tied ones included."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def build_skeleton(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, counts: Mapping[KeyPath, int]
) -> PreTrainedModel:
    """Builds `model_class` on the meta device (no memory) from a copy of `config` with other field values.

    Args:
        model_class: Class of the model.
        config: Its config; not changed.
        counts: Integer fields to set in the copy.
    """
    config = copy.deepcopy(config)
    for path, count in counts.items():
        set_count(config, path, count)
    # How attention and experts are computed changes no shape, and a fast way may want a GPU or a download.
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    with without_per_layer_counts(config), torch.device("meta"):
        return model_class(config)


def derive_schema(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> Schema | None:
    """Finds what depends on the number of experts; None for a model without routed experts.

    Args:
        model_class: Class of the model.
        config: Its config; not changed.

    Raises:
        ValueError: The class cannot be built from its config alone, or several different counts matter.
    """
    by_count: dict[int, list[KeyPath]] = {}
    for path in expert_count_paths(config):
        by_count.setdefault(get_count(config, path), []).append(path)
    if not by_count:
        return None
    try:
        base = build_skeleton(model_class, config, {})
        found = [
            schema
            for count, paths in sorted(by_count.items())
            if (schema := _compare(base, model_class, config, count, paths)) is not None
        ]
    except Exception as error:
        raise ValueError(
            f"[analyze] cannot build an empty {model_class.__name__} from its config alone: {error}"
        ) from error
    if len(found) > 1:
        fields = sorted(".".join(path) for schema in found for path in schema.paths)
        raise ValueError(
            f"[analyze] the config holds several different expert counts ({', '.join(fields)}); such "
            "models are not supported"
        )
    return found[0] if found else None


def _compare(
    base: PreTrainedModel,
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    num_experts: int,
    paths: list[KeyPath],
) -> Schema | None:
    """The schema for fields `paths`, all equal to `num_experts`; None when they change no tensor."""
    doubled = build_skeleton(model_class, config, dict.fromkeys(paths, 2 * num_experts))
    schema = Schema(num_experts=num_experts, paths=paths)
    before, after = dict(named_tensors(base)), dict(named_tensors(doubled))
    schema.shapes = {name: tuple(tensor.shape) for name, tensor in before.items()}
    for name, tensor in before.items():
        if name in after and after[name].shape != tensor.shape:
            spec = _expert_tensor(name, tuple(tensor.shape), tuple(after[name].shape), num_experts)
            if spec is None:
                schema.refusals.append(
                    f"{name}: shape {tuple(tensor.shape)} becomes {tuple(after[name].shape)} with twice "
                    "the experts, which is not one slice per expert"
                )
            else:
                schema.tensors[name] = spec
    if before.keys() != after.keys():
        example = min(before.keys() ^ after.keys())
        schema.refusals.append(
            f"{example}: each expert is a module of its own; only fused expert weights can be sliced"
        )
    if not schema.tensors and not schema.refusals:
        return None
    _compare_attributes(base, doubled, schema)
    return schema


def _expert_tensor(
    name: str, before: tuple[int, ...], after: tuple[int, ...], num_experts: int
) -> ExpertTensor | None:
    changed = [
        axis for axis in range(len(before)) if len(before) == len(after) and before[axis] != after[axis]
    ]
    if len(changed) != 1:
        return None
    axis = changed[0]
    small, large = before[axis], after[axis]
    if large - small == num_experts and small >= num_experts:
        return ExpertTensor(name, len(before), axis, extra=small - num_experts)
    if large == 2 * small and small % num_experts == 0:
        return ExpertTensor(name, len(before), axis, factor=small // num_experts)
    return None


def _is_plain(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(item) for item in value)
    return isinstance(value, (int, float, str))


def _compare_attributes(base: nn.Module, doubled: nn.Module, schema: Schema) -> None:
    others = dict(doubled.named_modules())
    for module_name, module in base.named_modules():
        if module_name not in others:
            continue
        for name, value in vars(module).items():
            other = vars(others[module_name]).get(name)
            if not _is_plain(value) or type(other) is not type(value) or value == other:
                continue
            rule = None
            if isinstance(value, int) and isinstance(other, int):
                if other == 2 * value:
                    rule = ExpertAttribute(module_name, name, Fraction(value, schema.num_experts))
                elif other - value == schema.num_experts:
                    rule = ExpertAttribute(module_name, name, Fraction(1), value - schema.num_experts)
            if rule is None:
                schema.refusals.append(
                    f"{module_name}.{name}: the value {value!r} becomes {other!r} with twice the experts; "
                    "how it depends on their number is unknown"
                )
            else:
                schema.attributes.append(rule)

# SPDX-License-Identifier: Apache-2.0
"""Under which names, and how, a checkpoint stores the experts' matrices: by Transformers' own conversions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from .moe import MoELayer, MoEModel
from .schema import named_tensors

# The parameters of an experts module that computes as Transformers' experts interface says.
_MATRICES = (("gate_up_proj", "down_proj"), ("up_proj", "down_proj"))


@dataclass
class StoredExperts:
    """One matrix of every expert of a layer, such as "model.layers.3.mlp.experts.gate_up_proj", in a checkpoint.

    Attributes:
        name: Full name of the model's fused parameter.
        shape: (rows, columns) of one expert's matrix, rows being outputs.
        fused: The checkpoint's one tensor of all experts; None where each expert has tensors of its own.
        is_transposed: Whether `fused` is [E, columns, rows] instead of [E, rows, columns].
        per_expert: Without `fused`, for each expert the tensors that lie one below the other in its
            matrix, equally many rows of each.
        num_experts: How many experts the checkpoint has in this layer.
    """

    name: str
    shape: tuple[int, int]
    num_experts: int = 0
    fused: str | None = None
    is_transposed: bool = False
    per_expert: list[list[str]] = field(default_factory=list)

    @property
    def tensors(self) -> list[str]:
        """Names of all the checkpoint's tensors that it comes from."""
        return [self.fused] if self.fused else [name for names in self.per_expert for name in names]


def check_experts_interface(moe: MoEModel, operation: str) -> None:
    """Raises ValueError unless another implementation can compute the experts of every layer.

    Args:
        moe: The analyzed model.
        operation: Whose name the message gets.
    """
    if not moe.layers:
        raise ValueError(f"[{operation}] the model (family {moe.family!r}) has no routed experts")
    for layer in moe.layers:
        names = tuple(matrix.name for matrix in layer.matrices)
        hooked = hasattr(type(layer.experts).forward, "__wrapped__") and layer.supports_statistics
        if not hooked or names not in _MATRICES:
            raise ValueError(
                f"[{operation}] family {moe.family!r} computes its experts itself ({type(layer.experts).__name__} at "
                f"{layer.experts_name}): it ignores Transformers' experts implementations, so packed experts "
                "cannot run in it"
            )


def expert_matrix_shape(layer: MoELayer, name: str) -> tuple[int, int]:
    """(outputs, inputs) of one expert's matrix `name` of a layer."""
    matrix = next(matrix for matrix in layer.matrices if matrix.name == name)
    first, second = matrix.parameter.shape[1:]
    return (second, first) if matrix.is_transposed else (first, second)


def stored_experts(
    moe: MoEModel, shapes: Mapping[str, tuple[int, ...]], *, check_interface: bool = True
) -> list[StoredExperts]:
    """Finds the experts' matrices of every layer in a checkpoint.

    Args:
        moe: The model as its class builds it, on the meta device if need be; its layers may have more experts than
            those stored (checkpoints with different numbers of experts per layer).
        shapes: Name -> shape of the checkpoint's tensors.
        check_interface: Refuse families whose experts another implementation cannot compute.

    Returns:
        One entry per matrix of a layer, layers in order.

    Raises:
        ValueError: The family's experts cannot be computed by another implementation, or the checkpoint stores a
            matrix in a way that is neither fused nor one tensor per expert; it is named.
    """
    if check_interface:
        check_experts_interface(moe, "stored_experts")
    transposed = {
        f"{layer.experts_name}.{matrix.name}": matrix.is_transposed
        for layer in moe.layers
        for matrix in layer.matrices
    }
    found = {
        f"{layer.experts_name}.{matrix.name}": StoredExperts(
            f"{layer.experts_name}.{matrix.name}", expert_matrix_shape(layer, matrix.name)
        )
        for layer in moe.layers
        for matrix in layer.matrices
    }
    sources = _sources(moe, shapes, found)
    for name, stored in found.items():
        _fill(stored, sources[name], shapes, transposed[name])
    return list(found.values())


def _sources(
    moe: MoEModel, shapes: Mapping[str, tuple[int, ...]], wanted: Mapping[str, StoredExperts]
) -> dict[str, dict[int, list[str]]]:
    """Target -> number of the source pattern (-1: without a conversion) -> the checkpoint's tensors, in order."""
    live = dict(named_tensors(moe.model))
    mapping = get_model_conversion_mapping(moe.model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {
        pattern: (converter, number)
        for converter in converters
        for number, pattern in enumerate(converter.source_patterns)
    }
    sources: dict[str, dict[int, list[str]]] = {name: {} for name in wanted}
    for name in sorted(shapes, key=dot_natural_key):
        if len(shapes[name]) not in (2, 3):
            continue  # patterns are slow, and biases and norms are many
        target, pattern = rename_source_key(
            name, renamings, converters, moe.model.base_model_prefix, meta_state_dict=live
        )
        if target not in wanted:
            continue
        number = -1
        if pattern is not None:
            converter, number = by_pattern[pattern]
            kinds = [(type(op).__name__, getattr(op, "dim", None)) for op in converter.operations]
            if kinds not in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)]):
                raise ValueError(
                    f"[stored_experts] {name} becomes {target} by {', '.join(kind for kind, _ in kinds)}, which "
                    "neither keeps nor stacks the experts' matrices"
                )
        sources[target].setdefault(number, []).append(name)
    return sources


def _fill(
    stored: StoredExperts,
    sources: Mapping[int, list[str]],
    shapes: Mapping[str, tuple[int, ...]],
    is_transposed: bool,
) -> None:
    """Says of one parameter where it comes from, and checks the shapes."""
    rows, columns = stored.shape

    def refuse(name: str) -> None:
        raise ValueError(
            f"[stored_experts] the checkpoint's {name}, {list(shapes[name])}, does not fit {stored.name}, whose "
            f"experts have {rows} x {columns} weights"
        )

    if not sources:
        raise ValueError(f"[stored_experts] the checkpoint has no tensor that becomes {stored.name}")
    if list(sources) == [-1]:
        stored.fused, stored.is_transposed = sources[-1][0], is_transposed
        expected = (columns, rows) if is_transposed else (rows, columns)
        if len(sources[-1]) != 1 or shapes[stored.fused][1:] != expected:
            refuse(sources[-1][-1])
        stored.num_experts = shapes[stored.fused][0]
        return
    parts = [sources[number] for number in sorted(sources)]
    if is_transposed or -1 in sources or len({len(names) for names in parts}) != 1:
        refuse(parts[0][0])
    stored.num_experts = len(parts[0])
    stored.per_expert = [list(names) for names in zip(*parts, strict=True)]
    for names in stored.per_expert:
        for name in names:
            if shapes[name] != (rows // len(names), columns) or rows % len(names):
                refuse(name)

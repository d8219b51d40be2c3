# SPDX-License-Identifier: Apache-2.0
"""Under which names, and how, a checkpoint stores the routers: by the conversions with which Transformers loads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from .moe import MoEModel
from .schema import ExpertTensor, named_tensors


@dataclass(frozen=True)
class StoredRouter:
    """The router of one block in a checkpoint.

    Attributes:
        index: Index of the decoder layer.
        block: Dotted name of the block, e.g. "model.layers.3.mlp".
        tensor: Name of the router's tensor in the checkpoint, e.g. "model.layers.3.block_sparse_moe.gate.weight".
        spec: Which of its dimensions counts experts.
    """

    index: int
    block: str
    tensor: str
    spec: ExpertTensor

    def rows(self, values: Any) -> Any:
        """One row per expert, [E, d], of the stored tensor: a view of an array or a tensor."""
        count = self.spec.num_experts(tuple(values.shape))
        return (values.T if self.spec.axis == 1 else values)[:count]


def stored_routers(moe: MoEModel, shapes: Mapping[str, tuple[int, ...]]) -> list[StoredRouter]:
    """Finds the router of every layer with experts in a checkpoint.

    Args:
        moe: The model as its class builds it, on the meta device if need be; its layers may have more experts than
            those stored (checkpoints with different numbers of experts per layer).
        shapes: Name -> shape of the checkpoint's tensors.

    Returns:
        One entry per layer with experts, in order.

    Raises:
        ValueError: A router has no tensor of its own in the checkpoint; it is named.
    """
    live = dict(named_tensors(moe.model))
    wanted = {spec.name: (layer, spec) for layer in moe.layers for spec in [layer.router_tensor]}
    widths = {live[name].shape[1 - spec.axis] for name, (_, spec) in wanted.items()}
    most = max((live[name].shape[spec.axis] for name, (_, spec) in wanted.items()), default=0)
    mapping = get_model_conversion_mapping(moe.model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    stored: dict[str, str] = {}
    for name, shape in shapes.items():
        # Patterns are slow, and large models have 100,000 tensors, of which few have a router's shape.
        if not (len(shape) == 2 and min(shape) <= most and widths.intersection(shape)):
            continue
        target, converted = rename_source_key(
            name, renamings, converters, moe.model.base_model_prefix, meta_state_dict=live
        )
        if target in wanted and converted is None and wanted[target][1].num_experts(shape) is not None:
            stored[target] = name
    missing = [name for name in wanted if name not in stored]
    if missing:
        raise ValueError(
            f"[model_routers] the checkpoint has no tensor that becomes {missing[0]} of {type(moe.model).__name__} "
            f"unchanged ({len(missing)} of {len(wanted)} routers)"
        )
    return [
        StoredRouter(layer.index, layer.name, stored[name], spec) for name, (layer, spec) in wanted.items()
    ]

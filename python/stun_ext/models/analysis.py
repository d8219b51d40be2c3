# SPDX-License-Identifier: Apache-2.0
"""Finding a model's routed experts, in any Transformers family."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .blocks import common_prefix, layer_index, moe_blocks
from .config_keys import nested_config
from .moe import MoELayer, MoEModel
from .routing import read_groups, read_top_k
from .schema import ExpertTensor, Schema, derive_schema, named_tensors


def analyze(model: PreTrainedModel) -> MoEModel:
    """Finds the routed experts of a Transformers model.

    The model's class is built on the meta device with its number of experts and with twice that; what changes
    is what belongs to experts. No weights are read. A model that cannot be sliced (see `plan_slices`) is
    analyzed all the same.

    Args:
        model: Any Transformers model; for a dense one the result has no layers.

    Raises:
        ValueError: The model is not a `PreTrainedModel`, its class cannot be built from its config alone, or
            its tensors are not those its class and config describe.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"[analyze] the model must be a transformers.PreTrainedModel, got {type(model).__name__}"
        )
    family = str(getattr(model.config, "model_type", "") or type(model).__name__)
    schema = derive_schema(type(model), model.config)
    if schema is None:
        suspects = [name for name, _ in model.named_modules() if name.rpartition(".")[2] == "experts"]
        if suspects:
            raise ValueError(
                f"[analyze] {suspects[0]} looks like routed experts, but no field of the config holds "
                "their number"
            )
        return MoEModel(model, model.config, family, [], [], 0, None)
    config = nested_config(model.config, schema.paths[0][:-1])
    if not hasattr(config, "num_hidden_layers"):  # the count sits in a sub-config such as DBRX's ffn_config
        config = model.config.get_text_config(decoder=True)
    live = {name: tuple(tensor.shape) for name, tensor in named_tensors(model)}
    layers = [
        _moe_layer(model, config, schema, live, name, specs)
        for name, specs in moe_blocks(schema.tensors.values()).items()
    ]
    keys = [".".join(path) for path in schema.paths]
    return MoEModel(model, config, family, layers, keys, schema.num_experts, schema)


def _moe_layer(
    model: PreTrainedModel,
    config: PreTrainedConfig,
    schema: Schema,
    live: dict[str, tuple[int, ...]],
    name: str,
    specs: list[ExpertTensor],
) -> MoELayer:
    index = layer_index(name)
    experts_name = common_prefix(spec.name for spec in specs if spec.holds_matrices)
    counts = set()
    for spec in specs:
        if spec.name not in live or len(live[spec.name]) != spec.ndim:
            raise ValueError(
                f"[analyze] {spec.name} is not as {type(model).__name__} builds it; quantised or wrapped "
                "models must be pruned before that"
            )
        counts.add(spec.num_experts(live[spec.name]))
    count = counts.pop() if len(counts) == 1 else None
    if count is None:
        raise ValueError(f"[analyze] {name}: its tensors disagree on the number of experts")
    block = model.get_submodule(name)
    routers = [block]
    for spec in specs:
        if not spec.name.startswith(experts_name + "."):
            routers += _modules_on_path(model, name, spec.name)
    top_k = read_top_k(routers, config, index)
    if top_k is None:
        raise ValueError(
            f"[analyze] {name}: neither its modules nor the config say how many experts a token chooses"
        )
    n_group, topk_group = read_groups(routers, config)
    hidden_size = getattr(config, "hidden_size", None)
    return MoELayer(
        index,
        name,
        block,
        model.get_submodule(experts_name),
        experts_name,
        count,
        top_k,
        n_group,
        topk_group,
        hidden_size if isinstance(hidden_size, int) else None,
        specs,
    )


def _modules_on_path(model: nn.Module, block: str, tensor: str) -> list[nn.Module]:
    """The modules below `block` that contain the tensor, outermost first."""
    found, parts = [], tensor[len(block) + 1 :].split(".")[:-1]
    for end in range(1, len(parts) + 1):
        found.append(model.get_submodule(".".join([block, *parts[:end]])))
    return found

# SPDX-License-Identifier: Apache-2.0
"""Loading checkpoints, those with different numbers of experts per layer included."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from .blocks import layer_index, moe_blocks
from .config_keys import (
    KeyPath,
    is_expert_count_name,
    iter_configs,
    nested_config,
    per_layer_counts,
    set_per_layer_counts,
    without_per_layer_counts,
)
from .schema import Schema, derive_schema

_HUB_KEYWORDS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)


def from_pretrained(
    path: str | os.PathLike[str], *, absent: Mapping[str, tuple[int, ...]] | None = None, **kwargs: Any
) -> PreTrainedModel:
    """Loads a causal language model as `AutoModelForCausalLM.from_pretrained` does, ragged checkpoints too.

    A ragged checkpoint has layers with different numbers of experts and says so in its config,
    ``"per_layer_config": {"3": {"num_local_experts": 48}}``. No stock class builds such a model; here the
    stock class builds it with the largest number everywhere, its layers are then resized (on the meta device,
    so without memory), and the stock loader fills them. The result is an instance of the stock class.

    Args:
        path: Directory or hub id.
        absent: Name -> shape of parameters of experts modules that the model is to be without: they are not in the
            files, and no memory is allocated for them.
        **kwargs: As for `AutoModelForCausalLM.from_pretrained`.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: `per_layer_config` gives expert counts to layers without experts, or illegal ones; or the model
            has no parameter of the name and shape of one in `absent`.
    """
    hub = {name: kwargs[name] for name in _HUB_KEYWORDS if name in kwargs}
    raw, _ = PreTrainedConfig.get_config_dict(path, **hub)
    ragged = _has_per_layer_counts(raw)
    if not ragged and not absent:
        return AutoModelForCausalLM.from_pretrained(path, **kwargs)

    trust_remote_code = kwargs.get("trust_remote_code")
    config = kwargs.pop("config", None)
    if config is None:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **hub)
    location, counts = _pop_counts(path, config) if ragged else ((), {})
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, trust_remote_code=trust_remote_code
        )
    if type(skeleton.config) is not type(config):  # the text model of a multimodal checkpoint
        config = config.get_text_config(decoder=True)
        location = ()
    schema = derive_schema(type(skeleton), config) if ragged else None
    if ragged and schema is None:
        raise ValueError(
            f"[from_pretrained] {path}: per_layer_config has expert counts, the model no experts"
        )

    def edit(model: nn.Module) -> None:
        if schema is not None:
            _resize(model, schema, counts)
        _remove(model, absent or {})

    loaded = _edited_class(type(skeleton), edit).from_pretrained(path, config=config, **kwargs)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.__class__ = type(skeleton)
    if schema is not None:
        names = [key[-1] for key in schema.paths if key[:-1] == location]
        set_per_layer_counts(nested_config(model.config, location), names, counts)
    return loaded


def _pop_counts(path: str | os.PathLike[str], config: PreTrainedConfig) -> tuple[KeyPath, dict[int, int]]:
    """Takes the per-layer expert counts out of the one nested config that has some; its place, and them.

    They go back into the config when the model is there: stock code that builds and initialises models may read the
    expert count, or expect all layers of a type to be alike.
    """
    per_layer = {
        location: counts for location, nested in iter_configs(config) if (counts := per_layer_counts(nested))
    }
    if len(per_layer) != 1:
        raise ValueError(f"[from_pretrained] {path}: more than one nested config has per-layer expert counts")
    ((location, counts),) = per_layer.items()
    set_per_layer_counts(nested_config(config, location), [], {})
    return location, counts


@contextmanager
def empty_model(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> Iterator[PreTrainedModel]:
    """The causal language model that a config describes, on the meta device: every shape, no weights.

    Stock classes build the largest number of experts in every layer; within the context the config says no other.

    Args:
        config: As `AutoConfig.from_pretrained` reads it.
        trust_remote_code: Run Python code that the checkpoint brings along.
    """
    with without_per_layer_counts(config), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, trust_remote_code=trust_remote_code
        )
        yield model


def _has_per_layer_counts(config: Mapping[str, Any]) -> bool:
    """Whether a config.json, or a config nested in it, gives layers their own expert counts."""
    layers = config.get("per_layer_config")
    if isinstance(layers, Mapping):
        for fields in layers.values():
            if isinstance(fields, Mapping) and any(is_expert_count_name(name) for name in fields):
                return True
    return any(_has_per_layer_counts(value) for value in config.values() if isinstance(value, Mapping))


def _edited_class(
    model_class: type[PreTrainedModel], edit: Callable[[nn.Module], None]
) -> type[PreTrainedModel]:
    """A subclass, under the same name, whose instances `edit` changes when they are built, still without weights.

    The name stays because Transformers looks up weight conversions by class name.
    """

    def init(self: PreTrainedModel, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, config, *args, **kwargs)
        edit(self)

    namespace = {"__init__": init, "__module__": model_class.__module__, "__doc__": model_class.__doc__}
    return type(model_class.__name__, (model_class,), namespace)


def _remove(model: nn.Module, absent: Mapping[str, tuple[int, ...]]) -> None:
    """Takes parameters out of an empty model, and marks their modules as needing no initial values."""
    for full_name, shape in absent.items():
        module_name, _, name = full_name.rpartition(".")
        try:
            module = model.get_submodule(module_name)
        except AttributeError:
            module = nn.Module()
        found = module._parameters.pop(name, None)
        if found is None or tuple(found.shape) != tuple(shape):
            raise ValueError(
                f"[from_pretrained] {full_name} must be {list(shape)}, but {type(model).__name__} with this config has "
                + ("none" if found is None else str(list(found.shape)))
            )
        module._is_hf_initialized = True  # type: ignore[assignment]


def _resize(model: nn.Module, schema: Schema, counts: Mapping[int, int]) -> None:
    """Gives the listed layers of an empty model their own number of experts."""
    missing = set(counts)
    for block, specs in moe_blocks(schema.tensors.values()).items():
        index = layer_index(block)
        if index not in counts:
            continue
        missing.discard(index)
        if not 1 <= counts[index] <= schema.num_experts:
            raise ValueError(
                f"[from_pretrained] per_layer_config: layer {index} must have 1 to {schema.num_experts} "
                f"experts, got {counts[index]}"
            )
        for spec in specs:
            module_name, _, name = spec.name.rpartition(".")
            module = model.get_submodule(module_name)
            old = getattr(module, name)
            new = torch.empty(schema.shape(spec.name, counts[index]), dtype=old.dtype, device=old.device)
            if isinstance(old, nn.Parameter):
                module._parameters[name] = nn.Parameter(new, requires_grad=old.requires_grad)
            else:
                module._buffers[name] = new
        for rule in schema.attributes:
            if rule.module == block or rule.module.startswith(block + "."):
                setattr(model.get_submodule(rule.module), rule.name, rule.value(counts[index]))
    if missing:
        raise ValueError(
            f"[from_pretrained] per_layer_config: layer {min(missing)} has an expert count but no experts"
        )

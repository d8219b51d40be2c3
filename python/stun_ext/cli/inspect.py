# SPDX-License-Identifier: Apache-2.0
"""``stun-ext inspect MODEL``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from stun_ext.cli import options
from stun_ext.cli.headers import StoredBytes, stored_bytes
from stun_ext.cli.loading import ModelSource, hush_transformers
from stun_ext.cli.session import session

if TYPE_CHECKING:
    from stun_ext.models import MoELayer


def inspect(
    model: options.Model,
    revision: options.Revision = None,
    local_files_only: options.LocalFilesOnly = False,
    trust_remote_code: options.TrustRemoteCode = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Tell what MODEL is made of and how many experts it may keep, without loading its weights."""
    with session(json_output=json_output, quiet=quiet) as current:
        source = ModelSource(model, revision, local_files_only, trust_remote_code)
        source.check("inspect")
        if quiet:
            hush_transformers()
        document = _describe(source)
        current.result(document, _table(document))


def _describe(source: ModelSource) -> dict[str, Any]:
    from transformers import AutoConfig

    from stun_ext.models import analyze, empty_model, slicing_refusals
    from stun_ext.models.config_keys import iter_configs, per_layer_counts

    config = AutoConfig.from_pretrained(source.name, **source.hub_arguments)
    own_counts: dict[int, int] = {}  # of layers that keep another number of experts than the config says
    for _, nested in iter_configs(config):
        own_counts.update(per_layer_counts(nested))
    with empty_model(config, trust_remote_code=source.trust_remote_code) as skeleton:
        moe = analyze(skeleton)
        refusals = slicing_refusals(moe) if moe.layers else []
        layers = [_layer(layer, own_counts.get(layer.index, layer.num_experts)) for layer in moe.layers]
    if own_counts:
        refusals = ["its layers already have different numbers of experts"]
    total = sum(parameter.numel() for parameter in skeleton.parameters())
    for layer, found in zip(layers, moe.layers, strict=True):
        total -= (found.num_experts - layer["num_experts"]) * layer["parameters_per_expert"]
    experts = sum(layer["num_experts"] * layer["parameters_per_expert"] for layer in layers)
    share = experts / total if total else 0.0
    return {
        "model": source.name,
        "family": moe.family,
        "architecture": type(skeleton).__name__,
        "num_layers": getattr(config.get_text_config(decoder=True), "num_hidden_layers", None),
        "num_moe_layers": len(layers),
        "expert_count_keys": list(moe.expert_count_keys),
        "refusals": refusals,
        "parameters": {"total": total, "experts": experts, "expert_share": share},
        "bytes": _bytes(stored_bytes(source), share),
        "layers": layers,
    }


def _bytes(stored: StoredBytes | None, parameter_share: float) -> dict[str, Any] | None:
    if stored is None:
        return None
    # A few families store their experts under other names; their share of the weights then stands in.
    estimated = parameter_share > 0 and stored.experts == 0
    experts = round(stored.total * parameter_share) if estimated else stored.experts
    return {
        "total": stored.total,
        "experts": experts,
        "expert_share": experts / stored.total,
        "estimated": estimated,
        "dtypes": list(stored.dtypes),
        "files": stored.num_files,
    }


def _layer(layer: MoELayer, num_experts: int) -> dict[str, Any]:
    from stun_ext.models import legal_expert_counts

    return {
        "index": layer.index,
        "name": layer.name,
        "num_experts": num_experts,
        "top_k": layer.top_k,
        "n_group": layer.n_group,
        "topk_group": layer.topk_group,
        "parameters_per_expert": layer.num_expert_parameters(),
        "matrices": {matrix.name: list(matrix.expert(0).shape) for matrix in layer.matrices},
        "correction_biases": _correction_biases(layer),
        "shared_experts": _shared_experts(layer),
        "legal_expert_counts": [count for count in legal_expert_counts(layer) if count <= num_experts],
        "supports_statistics": layer.supports_statistics,
    }


def _correction_biases(layer: MoELayer) -> list[str]:
    """Expert-indexed tensors beside the matrices and the router's rows: selection biases, scales."""
    rows = tuple(layer.router_weight.shape)
    return [
        spec.name[len(layer.name) + 1 :]
        for spec in layer.tensors
        if not spec.holds_matrices
        and not spec.name.startswith(layer.experts_name + ".")
        and rows != _shape(layer, spec.name)
    ]


def _shape(layer: MoELayer, name: str) -> tuple[int, ...]:
    module, _, attribute = name[len(layer.name) + 1 :].rpartition(".")
    return tuple(getattr(layer.block.get_submodule(module), attribute).shape)


def _shared_experts(layer: MoELayer) -> list[str]:
    """Modules of the block that every token passes through, by the names families give them."""
    return [
        name
        for name, _ in layer.block.named_children()
        if re.search(r"shared_?(experts?|mlp)", name) and not name.endswith("gate")
    ]


def ranges(numbers: Sequence[int]) -> str:
    """Ascending whole numbers in few words: 4-32, or 8-64 step 8, or 4, 6, 9."""
    parts: list[str] = []
    start = 0
    while start < len(numbers):
        end = start + 1
        step = numbers[end] - numbers[start] if end < len(numbers) else 1
        while end + 1 < len(numbers) and numbers[end + 1] - numbers[end] == step:
            end += 1
        if end < len(numbers) and end - start >= 2:
            parts.append(f"{numbers[start]}-{numbers[end]}" + (f" step {step}" if step > 1 else ""))
            start = end + 1
        else:
            parts.append(str(numbers[start]))
            start += 1
    return ", ".join(parts)


def _table(document: dict[str, Any]) -> Table:
    layers = document["layers"]
    table = Table(title=document["model"], title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("value", overflow="fold")
    table.add_row("family", f"{document['family']} ({document['architecture']})")
    table.add_row("layers", f"{document['num_layers']}, {document['num_moe_layers']} with routed experts")
    if layers:
        table.add_row("experts per layer", _values(layers, "num_experts"))
        table.add_row("experts per token (top-k)", _values(layers, "top_k"))
        groups = f"{_values(layers, 'n_group')}, {_values(layers, 'topk_group')} chosen per token"
        table.add_row("routing groups", "none" if all(layer["n_group"] == 1 for layer in layers) else groups)
        table.add_row("correction biases", _names(layers, "correction_biases"))
        table.add_row("shared experts", _names(layers, "shared_experts"))
        choices = {ranges(layer["legal_expert_counts"]) for layer in layers}
        table.add_row("legal expert counts", " | ".join(sorted(choices)))
        if not all(layer["supports_statistics"] for layer in layers):
            table.add_row(
                "statistics", "not for all layers: their experts lack Transformers' standard interface"
            )
        if document["refusals"]:
            table.add_row("experts cannot be removed", "\n".join(document["refusals"]))
    else:
        table.add_row("experts", "none: stage 2 alone can prune this model")
    parameters = document["parameters"]
    table.add_row("parameters", f"{parameters['total']:,}, {parameters['expert_share']:.1%} in experts")
    stored = document["bytes"]
    if stored is None:
        table.add_row("bytes", "unknown: no safetensors files")
    else:
        about = "about " if stored["estimated"] else ""
        size = f"{stored['total']:,} ({', '.join(stored['dtypes'])})"
        table.add_row("bytes", f"{size}, {about}{stored['expert_share']:.1%} in experts")
    return table


def _values(layers: list[dict[str, Any]], key: str) -> str:
    """One value where the layers agree, else one a layer."""
    values = [layer[key] for layer in layers]
    return str(values[0]) if len(set(values)) == 1 else ", ".join(map(str, values))


def _names(layers: list[dict[str, Any]], key: str) -> str:
    return ", ".join(dict.fromkeys(name for layer in layers for name in layer[key])) or "none"

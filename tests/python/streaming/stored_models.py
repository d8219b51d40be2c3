# SPDX-License-Identifier: Apache-2.0
"""Small checkpoints written tensor by tensor, in layouts that real ones have, and what pruning must make of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.cluster.hierarchy import fcluster, linkage

Tensors = dict[str, torch.Tensor]


class Source:
    """Draws tensors of any dtype, no two of them equal."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        if dtype == torch.uint8:
            return torch.randint(0, 256, shape, generator=self._generator, dtype=dtype)
        return torch.randn(shape, generator=self._generator).to(dtype)


def arctic(layers: int = 2, experts: int = 8) -> tuple[Tensors, dict[str, Any]]:
    """Snowflake Arctic: Mixtral's names beside a dense residual MLP. Transformers has no such class."""
    draw, hidden, inner = Source(), 16, 24
    tensors = {"model.embed_tokens.weight": draw(32, hidden), "lm_head.weight": draw(32, hidden)}
    for n in range(layers):
        at = f"model.layers.{n}"
        tensors[f"{at}.block_sparse_moe.gate.weight"] = draw(experts, hidden)
        for e in range(experts):
            for w, shape in (("w1", (inner, hidden)), ("w2", (hidden, inner)), ("w3", (inner, hidden))):
                tensors[f"{at}.block_sparse_moe.experts.{e}.{w}.weight"] = draw(*shape)
        # As many rows as experts, to tempt a search by shape.
        tensors[f"{at}.residual_mlp.w1.weight"] = draw(experts, hidden)
        tensors[f"{at}.residual_layernorm.weight"] = draw(hidden)
        tensors[f"{at}.self_attn.q_proj.weight"] = draw(hidden, hidden)
    config = {
        "model_type": "arctic", "num_hidden_layers": layers, "hidden_size": hidden, "num_local_experts": experts,
        "num_experts_per_tok": 2, "use_residual": True, "auto_map": {"AutoConfig": "configuration_arctic.ArcticConfig"},
    }  # fmt: skip
    return tensors, config


def flat(experts: int = 6) -> tuple[Tensors, dict[str, Any]]:
    """DBRX's layout under a name that Transformers does not know: experts one after the other along the rows."""
    draw, hidden, inner = Source(), 16, 12
    tensors = {"transformer.wte.weight": draw(32, hidden)}
    for n in range(2):
        at = f"transformer.blocks.{n}.ffn"
        tensors[f"{at}.router.layer.weight"] = draw(experts, hidden)
        for w in ("w1", "v1", "w2"):
            tensors[f"{at}.experts.mlp.{w}"] = draw(experts * inner, hidden)
    config = {
        "model_type": "dbrx_of_tomorrow", "n_layers": 2, "d_model": hidden,
        "ffn_config": {"moe_num_experts": experts, "moe_top_k": 2},
    }  # fmt: skip
    return tensors, config


def write(folder: Path, tensors: Tensors, config: dict[str, Any], files: int = 3) -> Path:
    """Writes a checkpoint of several files, tensors dealt out in turn, with an index."""
    folder.mkdir(parents=True)
    weight_map = {}
    for number in range(files):
        file = f"model-{number + 1:05}-of-{files:05}.safetensors"
        part = dict(list(tensors.items())[number::files])
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def read(folder: Path) -> Tensors:
    """Every tensor of a checkpoint; its files must be those of its index, if it has one."""
    files = sorted(folder.glob("*.safetensors"))
    tensors: Tensors = {}
    for file in files:
        found = load_file(file)
        assert not tensors.keys() & found.keys()
        tensors.update(found)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = json.loads(index.read_text())
        assert content["weight_map"].keys() == tensors.keys()
        assert set(content["weight_map"].values()) == {file.name for file in files}
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        assert content["metadata"]["total_size"] == size
    return tensors


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a directory, by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def expected_kept(rows: torch.Tensor, count: int) -> list[int]:
    """Complete linkage by SciPy, and of each cluster the row nearest to its mean (the lower of a pair)."""
    rows64 = rows.to(torch.float64).numpy()
    labels = fcluster(linkage(rows64, "complete"), count, "maxclust")
    kept = []
    for label in np.unique(labels):
        cluster = np.flatnonzero(labels == label)
        distances = np.linalg.norm(rows64[cluster] - rows64[cluster].mean(axis=0), axis=1)
        kept.append(int(cluster[0] if len(cluster) <= 2 else cluster[distances.argmin()]))
    return sorted(kept)


def expected(
    tensors: Tensors, kept: Callable[[str], list[int] | None], sliced: str, factor: int = 1
) -> Tensors:
    """What must be left, by the plainest means.

    Args:
        tensors: Of the whole model.
        kept: Experts kept in the block of a tensor, by its name; None outside of blocks.
        sliced: Pattern of the names of tensors with experts along their first dimension.
        factor: Rows of an expert in flat ones, the names of which hold "mlp".
    """
    left: Tensors = {}
    for name, tensor in tensors.items():
        ids = kept(name)
        match = re.fullmatch(r"(.*\.experts\.)(\d+)(\..*)", name)
        if ids is None or (match is None and not re.search(sliced, name)):
            left[name] = tensor
        elif match is None:
            rows = factor if "experts.mlp" in name else 1
            left[name] = torch.cat([tensor[e * rows : (e + 1) * rows] for e in ids])
        elif int(match[2]) in ids:
            left[f"{match[1]}{ids.index(int(match[2]))}{match[3]}"] = tensor
    return left


def same(left: Tensors, right: Tensors) -> None:
    """Fails unless both hold the same tensors, bit for bit."""
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype and tensor.shape == right[name].shape, name
        assert torch.equal(
            tensor.contiguous().view(torch.uint8), right[name].contiguous().view(torch.uint8)
        ), name

# SPDX-License-Identifier: Apache-2.0
"""Stage 2 of a checkpoint on disk: how sparse each block becomes, and which rows of which tensors that means."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stun_ext import weight_pruning
from stun_ext.calibration import tokens_behind_norms
from stun_ext.models import StoredExperts
from stun_ext.recipe import Recipe
from stun_ext.request import stage2_sparsity
from stun_ext.statistics import Statistics
from stun_ext.streaming.layout import Layout, StoredBlock, mapped
from stun_ext.streaming.parts import is_scale
from stun_ext.streaming.shards import StoredCheckpoint
from stun_ext.streaming.zeroing import DTYPES, MatrixEdit


@dataclass(frozen=True)
class Matrix:
    """One matrix of every expert of a block, as pruning in memory sees it.

    Attributes:
        name: Its name in statistics, "gate_up_proj"; "" where there are none.
        rows: Outputs.
        cols: Inputs.
        tensors: For each expert the tensors that hold its rows, one below the other; the one of all for fused ones.
        fused: Whether one tensor holds all experts along its first dimension.
        is_transposed: Whether that is [E, cols, rows].
    """

    name: str
    rows: int
    cols: int
    tensors: list[list[str]]
    fused: bool = False
    is_transposed: bool = False


@dataclass
class WeightPlan:
    """What stage 2 does.

    Attributes:
        sparsities: Of each block.
        edits: File -> matrices with weights to zero, by the first byte of their range.
        digest: What tells these edits from others.
        notes: What the user should know.
    """

    sparsities: list[float]
    edits: dict[str, dict[int, MatrixEdit]]
    digest: str
    notes: list[str]


def block_matrices(
    checkpoint: StoredCheckpoint, layout: Layout, experts: Callable[[], list[list[StoredExperts]]] | None
) -> list[list[Matrix]]:
    """The experts' matrices of every block.

    Args:
        checkpoint: The checkpoint.
        layout: Its blocks.
        experts: Gives the matrices of the blocks that a class of Transformers has, which come first.

    Raises:
        ValueError: Experts whose single weights cannot be zeroed, quantised ones among them; the tensor is named.
    """
    for block in layout.blocks:
        _refuse_quantised(checkpoint, block)
    known = [] if experts is None else experts()
    found = [
        [
            Matrix(
                stored.name.rpartition(".")[2],
                *stored.shape,
                stored.per_expert or [[str(stored.fused)]] * stored.num_experts,
                stored.fused is not None,
                stored.is_transposed,
            )
            for stored in of_layer
        ]
        for of_layer in known
    ]
    found += [_by_names(checkpoint, block) for block in layout.blocks[len(known) :]]
    for matrices in found:
        for matrix in matrices:
            name = matrix.tensors[0][0]
            dtype = checkpoint.tensor(name).dtype
            if dtype not in DTYPES:
                raise ValueError(
                    f"[prune_checkpoint] {name}: weights of dtype {', '.join(DTYPES)} can be zeroed, got {dtype}; "
                    "weight_method='none' removes whole experts alone"
                )
    return found


def _refuse_quantised(checkpoint: StoredCheckpoint, block: StoredBlock) -> None:
    floats = ("F64", *DTYPES)
    for name, part in block.parts.items():
        expert = getattr(part, "in_experts", True)
        if expert and (is_scale(name) or checkpoint.tensor(name).dtype not in floats):
            raise ValueError(
                f"[prune_checkpoint] {name}: single weights of quantised experts cannot be zeroed; use "
                "weight_method='none', which removes whole experts with their scales, or prune the checkpoint before "
                "it is quantised (or a copy of it in bfloat16) and quantise the result"
            )


def _by_names(checkpoint: StoredCheckpoint, block: StoredBlock) -> list[Matrix]:
    """Linear layers of single experts, [outputs, inputs] as torch stores them; no other layout tells what is what."""
    found = []
    for matrix in block.matrices:
        shape = checkpoint.tensor(matrix.tensors[0]).shape
        if matrix.axis is not None or len(shape) != 2:
            raise ValueError(
                f"[prune_checkpoint] {matrix.tensors[0]}: nothing says which of its dimensions are inputs, so that "
                "single weights cannot be zeroed; weight_method='none' removes whole experts alone"
            )
        found.append(Matrix("", shape[0], shape[1], [[name] for name in matrix.tensors]))
    return found


def check_request(
    layout: Layout, matrices: Sequence[Sequence[Matrix]], statistics: Statistics | None, recipe: Recipe
) -> None:
    """Refuses a pattern or statistics that do not fit, before any weight is read."""
    for number, (block, of_block) in enumerate(zip(layout.blocks, matrices, strict=True)):
        stats = None if statistics is None or number >= len(statistics.layers) else statistics.layers[number]
        for matrix in of_block:
            where = f"{block.name}.experts: {matrix.name or matrix.tensors[0][0]}"
            if recipe.nm is not None and matrix.cols % recipe.nm[1]:
                raise ValueError(
                    f"[prune_checkpoint] pattern {recipe.pattern} needs input widths that are multiples of "
                    f"{recipe.nm[1]}, but {where} has {matrix.cols}"
                )
            if stats is None or recipe.weight_method == "magnitude":
                continue
            norms = stats.input_sq_norm.get(matrix.name)
            if norms is None or norms.shape[1] != matrix.cols:
                have = "none" if norms is None else f"those of {norms.shape[1]} inputs"
                raise ValueError(
                    f"[prune_checkpoint] {where} needs norms of {matrix.cols} inputs, the statistics have {have}"
                )


def plan_weights(
    checkpoint: StoredCheckpoint,
    layout: Layout,
    matrices: Sequence[Sequence[Matrix]],
    kept: Sequence[Sequence[int]],
    statistics: Statistics | None,
    recipe: Recipe,
    skip: Sequence[bool],
) -> WeightPlan:
    """Settles which rows lose how many weights, as `planning.make_plan` does for a model in memory.

    Args:
        checkpoint: The checkpoint.
        layout: Its blocks.
        matrices: Of `block_matrices`.
        kept: For each block the ids that stay.
        statistics: Of the blocks that the model's class has, or None.
        recipe: The settings, with a weight method.
        skip: For each block whether its weights stay as they are.
    """
    sums = [block.num_expert_parameters() for block in layout.blocks]
    left = [size * len(ids) for size, ids in zip(sums, kept, strict=True)]
    total = sum(size * block.num_experts for size, block in zip(sums, layout.blocks, strict=True))
    sparsity = 0.0 if recipe.nm else stage2_sparsity(total, total - sum(left), recipe.sparsity)
    share = sparsity if recipe.nm is None else 1.0 - recipe.nm[0] / recipe.nm[1]
    sparsities = [0.0 if one else share for one in skip]
    with_norms = 0 if statistics is None or recipe.weight_method == "magnitude" else len(statistics.layers)
    # Blocks beside the class's layers (multi-token prediction) have no norms and take part in no comparison.
    compared = len(layout.blocks) - layout.num_extra
    if recipe.weight_allocation == "owl" and sparsity > 0:
        outliers = [
            weight_pruning.outlier_percent(
                _Scored(checkpoint, matrices[b], kept[b], statistics if b < with_norms else None, b, recipe),
                recipe.owl_threshold,
            )
            for b in range(compared)
        ]
        sparsities[:compared] = weight_pruning.owl_sparsities(
            outliers, left[:compared], sparsity, recipe.owl_lambda
        )
    edits: dict[str, dict[int, MatrixEdit]] = {}
    digest = hashlib.sha256(json.dumps([recipe.to_dict(), sparsities]).encode())
    for b, (of_block, ids) in enumerate(zip(matrices, kept, strict=True)):
        if sparsities[b] == 0:
            continue
        for matrix in of_block:
            counts = (
                None if recipe.nm else weight_pruning.prune_counts(matrix.rows, matrix.cols, sparsities[b])
            )
            for expert in ids:
                norms = _norms(statistics, b, matrix, expert, recipe) if b < with_norms else None
                if norms is not None:
                    digest.update(norms.tobytes())
                for file, begin, edit in _edits(checkpoint, matrix, expert, b, counts, norms, recipe):
                    edits.setdefault(file, {})[begin] = edit
    notes = []
    if with_norms and layout.num_extra:
        names = ", ".join(block.name for block in layout.blocks[compared:])
        notes.append(f"{names}: calibration does not reach it, so its weights go by magnitude")
    return WeightPlan(sparsities, edits, digest.hexdigest(), notes)


def _norms(
    statistics: Statistics | None, block: int, matrix: Matrix, expert: int, recipe: Recipe
) -> np.ndarray | None:
    assert statistics is not None
    layer = statistics.layers[block]
    table = layer.gated_input_sq_norm if recipe.weight_method == "gated_wanda" else layer.input_sq_norm
    return np.ascontiguousarray(table[matrix.name][expert].numpy())


def _edits(
    checkpoint: StoredCheckpoint,
    matrix: Matrix,
    expert: int,
    block: int,
    counts: np.ndarray | None,
    norms: np.ndarray | None,
    recipe: Recipe,
) -> Iterator[tuple[str, int, MatrixEdit]]:
    first = 0
    for name in matrix.tensors[expert]:
        stored = checkpoint.tensor(name)
        rows = matrix.rows // len(matrix.tensors[expert])
        size = stored.bytes // stored.shape[0] if matrix.fused else stored.bytes
        begin = stored.begin + (expert * size if matrix.fused else 0)
        part = None if counts is None else counts[first : first + rows]
        yield (
            checkpoint.file_of[name],
            begin,
            MatrixEdit(
                name, block, rows, matrix.cols, stored.dtype, matrix.is_transposed, part, recipe.nm, norms
            ),
        )
        first += rows


class _Scored:
    """(weight, norms) of every matrix that a block keeps, one at a time in memory; can be gone through twice.

    As `planning` has them for OWL: norms are means over the tokens that reached each expert.
    """

    def __init__(
        self,
        checkpoint: StoredCheckpoint,
        matrices: Sequence[Matrix],
        kept: Sequence[int],
        statistics: Statistics | None,
        block: int,
        recipe: Recipe,
    ) -> None:
        self._checkpoint, self._matrices, self._kept = checkpoint, matrices, kept
        self._statistics, self._block, self._recipe = statistics, block, recipe

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        for matrix in self._matrices:
            for expert in self._kept:
                weight = _weight(self._checkpoint, matrix, expert)
                norms = None
                if self._statistics is not None:
                    sums = _norms(self._statistics, self._block, matrix, expert, self._recipe)
                    layer = self._statistics.layers[self._block]
                    norms = torch.from_numpy(sums) / tokens_behind_norms(layer, [expert])
                yield weight, norms


def _weight(checkpoint: StoredCheckpoint, matrix: Matrix, expert: int) -> torch.Tensor:
    tensors = [mapped(checkpoint, name) for name in matrix.tensors[expert]]
    if matrix.fused:
        return tensors[0][expert].T if matrix.is_transposed else tensors[0][expert]
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

# SPDX-License-Identifier: Apache-2.0
"""Stage 1: which experts go. Decisions only; ``pipeline`` carries them out.

A layer's decision is the ids it keeps, the cluster of every expert (for similarity clustering) and, for mean
reconstruction, the members that a kept expert is the mean of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from stun_ext import ops
from stun_ext.models import RoutedLayer, legal_expert_counts
from stun_ext.recipe import Recipe
from stun_ext.statistics import LayerStatistics

# The columns of one layer's experts that are held in float32 at a time when cluster means are formed.
_COLUMN_CHUNK = 1 << 20


@dataclass
class LayerDecision:
    """What stage 1 does to one layer."""

    kept: list[int]  # expert ids, ascending; their new order
    labels: list[int] | None = None  # lowest expert of each expert's cluster (similarity clustering)
    members: dict[int, list[int]] = field(
        default_factory=dict
    )  # kept id -> the cluster it becomes the mean of


@dataclass
class ExpertDecisions:
    """What stage 1 does to the model."""

    layers: list[LayerDecision]
    requested_total: int
    threshold: float | None = None  # of per_layer="global"

    @property
    def counts(self) -> list[int]:
        """Experts kept per layer."""
        return [len(layer.kept) for layer in self.layers]


def saliency(statistics: LayerStatistics, criterion: str) -> np.ndarray:
    """Saliency of each expert, float64 [E]: S_i = N_i^(-b) Σ_t g^α ‖f‖^β over the tokens routed to expert i.

    ``frequency`` (0,0,0), ``reap`` (1,1,1), ``weighted_norm_sum`` (0,1,1), ``man`` (1,0,1), ``msan`` (1,0,2) as
    (b,α,β); REAP is Lasby et al., ICLR 2026; MAN and MSAN are arXiv 2606.15716. An expert without tokens scores 0.

    Raises:
        ValueError: an unknown criterion.
    """
    count = statistics.token_count.to(torch.float64)
    sums = {
        "frequency": count,
        "weighted_norm_sum": statistics.weighted_norm_sum,
        "reap": statistics.weighted_norm_sum,
        "man": statistics.norm_sum,
        "msan": statistics.norm_sq_sum,
    }
    if criterion not in sums:
        raise ValueError(f"[saliency] criterion must be one of {', '.join(sums)}, got {criterion!r}")
    score = sums[criterion].to(torch.float64)
    if criterion in ("reap", "man", "msan"):
        score = score / count.clamp(min=1)
    return score.cpu().numpy()


def similarity_distances(
    layer: RoutedLayer, statistics: LayerStatistics | None, recipe: Recipe
) -> np.ndarray:
    """D = λ1·‖W_i − W_j‖ − λ2·A/|mean(A)|, float64 [E, E]: STUN's b_ij (arXiv 2409.06211) with a distance's sign.

    The co-activation term is left out where no two experts ever met (its scale would be 0/0).
    """
    router_weight, coactivation_weight = recipe.similarity
    distances = np.zeros((layer.num_experts, layer.num_experts))
    if router_weight > 0:
        rows = layer.router_weight.detach().to("cpu")
        distances += router_weight * np.asarray(
            ops.pairwise_distances(rows, divide_by_frobenius=recipe.normalize_router), dtype=np.float64
        )
    if coactivation_weight > 0:
        assert statistics is not None  # pipeline checked that the recipe has them
        counts = statistics.coactivation.cpu().numpy()
        if counts.any():
            distances += coactivation_weight * np.asarray(
                ops.coactivation_distances(counts), dtype=np.float64
            )
    return distances


def uniform_count(layer: RoutedLayer, recipe: Recipe) -> int:
    """Experts kept per layer: the legal count nearest to (1 − share)·E; of two equally near the larger.

    A share that the recipe leaves to the default gives way to what is legal; one that was asked for does not.

    Raises:
        ValueError: no legal count removes what was asked, or the minimum exceeds what is left.
    """
    share = recipe.expert_share(layer.num_experts)
    if share == 0:
        return layer.num_experts
    legal = _legal(layer, recipe)
    wanted = (1.0 - share) * layer.num_experts
    if recipe.has_default_split:
        return min(legal or [layer.num_experts], key=lambda count: (abs(count - wanted), -count))
    if not legal or legal == [layer.num_experts]:
        raise ValueError(
            f"[prune] no expert can be removed from {layer.name}: {layer.num_experts} experts, top-{layer.top_k} "
            f"routing, {layer.n_group} groups, expert_multiple={recipe.expert_multiple}, "
            f"min_experts={recipe.min_experts}"
        )
    if wanted < legal[0] - 0.5:
        raise ValueError(
            f"[prune] expert_sparsity={share:g} would keep {wanted:g} of {layer.num_experts} experts in {layer.name}; "
            f"at least {legal[0]} must stay (top-{layer.top_k} routing, {layer.n_group} groups, "
            f"expert_multiple={recipe.expert_multiple}, min_experts={recipe.min_experts}): "
            f"ask for at most {1 - legal[0] / layer.num_experts:g}"
        )
    return min(legal, key=lambda count: (abs(count - wanted), -count))


def _legal(layer: RoutedLayer, recipe: Recipe) -> list[int]:
    counts = legal_expert_counts(layer, recipe.expert_multiple)
    least = recipe.min_experts or 1
    return [count for count in counts if count >= least]


def decide(
    layers: Sequence[RoutedLayer], statistics: Sequence[LayerStatistics | None], recipe: Recipe
) -> ExpertDecisions:
    """Chooses the experts of every layer.

    Args:
        layers: the MoE layers.
        statistics: one per layer, or None where ``recipe.needs_statistics`` is False.
        recipe: the settings; ``uniform_count`` has accepted every layer.
    """
    counts = [uniform_count(layer, recipe) for layer in layers]
    requested = sum(counts)
    everything = all(count == layer.num_experts for count, layer in zip(counts, layers, strict=True))
    if everything:
        return ExpertDecisions([LayerDecision(list(range(layer.num_experts))) for layer in layers], requested)
    if recipe.per_layer == "global":
        wanted = sum((1.0 - recipe.expert_share(layer.num_experts)) * layer.num_experts for layer in layers)
        least = sum(min(_legal(layer, recipe), default=layer.num_experts) for layer in layers)
        requested = max(round(wanted), least)
    if recipe.criterion == "similarity":
        return _decide_by_similarity(layers, statistics, recipe, counts, requested)
    scores = [_scores(layer, stats, recipe) for layer, stats in zip(layers, statistics, strict=True)]
    threshold = None
    if recipe.per_layer == "global":
        # Layers differ in scale, so they are compared by each expert's share of its layer's saliency.
        costs = [
            _removal_costs(layer, score / max(float(score.sum()), 1e-300))
            for layer, score in zip(layers, scores, strict=True)
        ]
        counts, threshold = _global_counts(layers, costs, requested, recipe)
    kept = [
        _keep_best(layer, score, count) for layer, score, count in zip(layers, scores, counts, strict=True)
    ]
    return ExpertDecisions([LayerDecision(ids) for ids in kept], requested, threshold)


def _scores(layer: RoutedLayer, statistics: LayerStatistics | None, recipe: Recipe) -> np.ndarray:
    if recipe.criterion == "random":
        return np.random.default_rng([recipe.seed, layer.index]).random(layer.num_experts)
    assert statistics is not None
    return saliency(statistics, recipe.criterion)


def _groups(layer: RoutedLayer) -> list[np.ndarray]:
    """Expert ids of each routing group; routing needs equally many survivors in each."""
    return np.split(np.arange(layer.num_experts), layer.n_group)


def _keep_best(layer: RoutedLayer, score: np.ndarray, count: int) -> list[int]:
    """The best of each group, ties to the lower id."""
    kept: list[int] = []
    for ids in _groups(layer):
        order = np.argsort(-score[ids], kind="stable")
        kept += sorted(int(i) for i in ids[order[: count // layer.n_group]])
    return kept


def _removal_costs(layer: RoutedLayer, score: np.ndarray) -> np.ndarray:
    """Cost of each successive removal of one expert per group: the summed scores of the experts that go."""
    return np.asarray(np.sum([np.sort(score[ids]) for ids in _groups(layer)], axis=0))


def _global_counts(
    layers: Sequence[RoutedLayer], costs: Sequence[np.ndarray], total: int, recipe: Recipe
) -> tuple[list[int], float]:
    """Counts under one threshold on the removal costs; ends at the total, or just above it where steps are larger.

    Each layer steps down its legal counts. The cheapest next step of any layer is taken first (ties: lowest layer),
    its cost the dearest removal it holds.
    """
    ladders = [_legal(layer, recipe)[::-1] for layer in layers]
    counts = [layer.num_experts for layer in layers]
    position = [0] * len(layers)
    threshold = -math.inf
    while sum(counts) > total:
        best: tuple[float, int] | None = None
        for index, (layer, ladder) in enumerate(zip(layers, ladders, strict=True)):
            if position[index] + 1 >= len(ladder):
                continue
            removed = (layer.num_experts - ladder[position[index] + 1]) // layer.n_group
            step = float(np.max(costs[index][:removed]))
            if sum(counts) - counts[index] + ladder[position[index] + 1] >= total and (
                best is None or step < best[0]
            ):
                best = (step, index)
        if best is None:
            break
        threshold = max(threshold, best[0])
        index = best[1]
        position[index] += 1
        counts[index] = ladders[index][position[index]]
    return counts, threshold


def _decide_by_similarity(
    layers: Sequence[RoutedLayer],
    statistics: Sequence[LayerStatistics | None],
    recipe: Recipe,
    counts: list[int],
    requested: int,
) -> ExpertDecisions:
    distances = [
        similarity_distances(layer, stats, recipe) for layer, stats in zip(layers, statistics, strict=True)
    ]
    threshold = None
    if recipe.per_layer == "global" and recipe.linkage == "star":
        counts, threshold = _global_star_counts(layers, distances, requested, recipe)
    elif recipe.per_layer == "global":
        costs = [
            _merge_heights(layer, matrix, recipe.linkage)
            for layer, matrix in zip(layers, distances, strict=True)
        ]
        counts, threshold = _global_counts(layers, costs, requested, recipe)
    decisions = []
    for layer, matrix, stats, count in zip(layers, distances, statistics, counts, strict=True):
        star_threshold = threshold if recipe.linkage == "star" and layer.n_group == 1 else None
        labels = _labels(layer, matrix, count, recipe.linkage, star_threshold)
        decisions.append(_represent(layer, labels, stats, recipe))
    return ExpertDecisions(decisions, requested, threshold)


def _global_star_counts(
    layers: Sequence[RoutedLayer], distances: Sequence[np.ndarray], total: int, recipe: Recipe
) -> tuple[list[int], float]:
    if recipe.expert_multiple != 1:
        raise ValueError(
            "[prune] linkage='star' with per_layer='global' keeps what one threshold gives, which need not be a "
            f"multiple of expert_multiple={recipe.expert_multiple}; use per_layer='uniform' or linkage='complete'"
        )
    least = max(_legal(layer, recipe)[0] for layer in layers)
    allocation = ops.allocate_experts(distances, total, least, n_group=layers[0].n_group)
    return list(allocation.counts), allocation.threshold


def _merge_heights(layer: RoutedLayer, distances: np.ndarray, linkage: str) -> np.ndarray:
    """Height of the k-th merge in every group, the highest over groups."""
    return np.asarray(np.max([_dendrogram(distances, ids, linkage)[:, 2] for ids in _groups(layer)], axis=0))


def _dendrogram(distances: np.ndarray, ids: np.ndarray, linkage: str) -> np.ndarray:
    upper = np.triu_indices(len(ids), k=1)
    return ops.linkage(np.ascontiguousarray(distances[np.ix_(ids, ids)][upper]), linkage)


def _labels(
    layer: RoutedLayer, distances: np.ndarray, count: int, linkage: str, star_threshold: float | None
) -> np.ndarray:
    """Cluster label (lowest expert id) of every expert, with ``count`` clusters spread equally over the groups."""
    labels = np.empty(layer.num_experts, dtype=np.int64)
    for ids in _groups(layer):
        in_group = count // layer.n_group
        if linkage != "star":
            part = ops.cut_tree(_dendrogram(distances, ids, linkage), n_clusters=in_group)
        elif star_threshold is not None:
            part = ops.star_clusters(distances[np.ix_(ids, ids)], star_threshold, in_group)
        else:
            part, _ = ops.star_clusters_count(distances[np.ix_(ids, ids)], in_group)
        labels[ids] = ids[np.asarray(part)]
    return labels


def _represent(
    layer: RoutedLayer, labels: np.ndarray, statistics: LayerStatistics | None, recipe: Recipe
) -> LayerDecision:
    kept: list[int] = []
    members: dict[int, list[int]] = {}
    score = None
    if recipe.representative == "score":
        assert statistics is not None
        score = saliency(statistics, recipe.representative_score)
    for label in np.unique(labels):
        cluster = np.flatnonzero(labels == label)
        if len(cluster) == 1:
            kept.append(int(cluster[0]))
        elif recipe.representative == "router":
            kept.append(nearest_router_row(layer, [int(i) for i in cluster]))
        elif score is not None:
            kept.append(int(cluster[np.argmax(score[cluster])]))  # argmax takes the lowest id among equals
        elif recipe.representative == "mean" and len(cluster) < recipe.mean_limit:
            kept.append(int(cluster[0]))
            members[int(cluster[0])] = [int(i) for i in cluster]
        else:
            kept.append(nearest_to_mean(layer, [int(i) for i in cluster]))
    return LayerDecision(sorted(kept), [int(label) for label in labels], members)


def nearest_to_mean(layer: RoutedLayer, cluster: Sequence[int]) -> int:
    """The member whose concatenated weights are nearest to the cluster's mean; ties to the lowest id.

    The mean is formed in float32 and distances are summed in float64. The members of a pair are equally far from their
    mean, so a pair's weights are not read.
    """
    if len(cluster) <= 2:
        return min(cluster)
    squared = torch.zeros(len(cluster), dtype=torch.float64)
    for matrix in layer.matrices:
        weights = [matrix.expert(e).detach() for e in cluster]
        rows = max(1, _COLUMN_CHUNK // (len(cluster) * weights[0].shape[1]))
        for start in range(0, weights[0].shape[0], rows):
            block = torch.stack([w[start : start + rows].to(torch.float32) for w in weights])
            deviation = (block - block.mean(dim=0)).flatten(1)
            squared += deviation.to(torch.float64).square().sum(dim=1).cpu()
    # Members that are equally far from their mean are so but for rounding.
    nearest = squared <= squared.min() * (1 + 1e-6)
    return min(expert for expert, is_nearest in zip(cluster, nearest.tolist(), strict=True) if is_nearest)


def nearest_router_row(layer: RoutedLayer, cluster: Sequence[int]) -> int:
    """The member whose router row is nearest to the mean of the cluster's rows, in float64; ties to the lowest id."""
    rows = layer.router_weight.detach()[list(cluster)].to("cpu", torch.float64)
    squared = (rows - rows.mean(dim=0)).square().sum(dim=1)
    nearest = squared <= squared.min() * (1 + 1e-12)
    return min(expert for expert, is_nearest in zip(cluster, nearest.tolist(), strict=True) if is_nearest)

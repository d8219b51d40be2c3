# SPDX-License-Identifier: Apache-2.0
"""Independent references: plain loops after the published definitions, sharing nothing with the library."""

from __future__ import annotations

import itertools
import math

import ml_dtypes
import numpy as np
import torch

ML_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def weight(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: str, *, ties: bool = False
) -> torch.Tensor:
    """Random values of a torch dtype; with ties, few distinct magnitudes and both signs."""
    values = rng.integers(-3, 4, shape) / 2 if ties else rng.standard_normal(shape)
    return torch.from_numpy(np.asarray(values)).to(getattr(torch, dtype))


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The same memory as NumPy; bfloat16 as ml_dtypes."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ML_BFLOAT16)
    return tensor.numpy()


def squareform(condensed: np.ndarray, n: int) -> np.ndarray:
    """Condensed distances as a symmetric matrix."""
    D = np.zeros((n, n))
    for value, (i, j) in zip(condensed, itertools.combinations(range(n), 2), strict=True):
        D[i, j] = D[j, i] = value
    return D


def lowest_member(labels: np.ndarray) -> np.ndarray:
    """Any labels as the lowest index of each cluster."""
    first: dict[int, int] = {}
    return np.array([first.setdefault(int(label), i) for i, label in enumerate(labels)], dtype=np.int64)


def naive_linkage(condensed: np.ndarray, n: int, method: str) -> np.ndarray:
    """Merges the smallest (distance, lower id, higher id), with the distances of the definitions.

    single, complete and average by their definitions over the members (not by a recurrence).
    """
    D = squareform(condensed, n)
    members = {i: [i] for i in range(n)}
    combine = {"single": min, "complete": max, "average": lambda values: math.fsum(values) / len(values)}[
        method
    ]
    merges = []
    for new in range(n, 2 * n - 1):
        height, a, b = min(
            (combine([D[i, j] for i in members[a] for j in members[b]]), a, b)
            for a, b in itertools.combinations(sorted(members), 2)
        )
        members[new] = members.pop(a) + members.pop(b)
        merges.append((a, b, height, len(members[new])))
    return np.array(merges, dtype=np.float64).reshape(n - 1, 4)


def star_rule(D: np.ndarray, threshold: float, min_clusters: int = 1) -> np.ndarray:
    """The released rule, word by word: one pass over the pairs sorted by (distance, i, j)."""
    D = D.astype(np.float64)  # exact, and a copy: the rule overwrites it
    n = len(D)
    cluster = {i: {i} for i in range(n)}  # which cluster an expert is in; merged clusters are one shared set
    remaining = n
    for distance, i, j in sorted((D[i, j], i, j) for i, j in itertools.combinations(range(n), 2)):
        if distance >= threshold or remaining <= min_clusters:
            break
        if j in cluster[i]:
            continue
        star = [D[c, j] for c in cluster[i]] + [D[c, i] for c in cluster[j]]
        if max(star) < threshold:
            merged = cluster[i] | cluster[j]
            for c in merged:
                cluster[c] = merged
            remaining -= 1
        else:
            D[i, j] = D[j, i] = math.inf
    return np.array([min(cluster[i]) for i in range(n)], dtype=np.int64)


def star_breakpoints(layers: list[np.ndarray]) -> list[float]:
    """The thresholds at which anything can change: all pair distances, and infinity."""
    values = {float(D[i, j]) for D in layers for i, j in itertools.combinations(range(len(D)), 2)}
    return [*sorted(values), math.inf]


def wanda_kept(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """True = kept, by a stable ascending sort of every row (torch's)."""
    order = torch.sort(torch.from_numpy(scores), dim=1, stable=True).indices.numpy()
    kept = np.ones(scores.shape, dtype=bool)
    for r, count in enumerate(counts):
        kept[r, order[r, :count]] = False
    return kept


def nm_kept(scores: np.ndarray, n: int, m: int) -> np.ndarray:
    """True = kept: per block of m columns, the m - n first of a stable ascending sort go."""
    kept = np.ones(scores.shape, dtype=bool)
    for r in range(scores.shape[0]):
        for start in range(0, scores.shape[1], m):
            block = [(scores[r, c], c) for c in range(start, start + m)]
            for _, c in sorted(block)[: m - n]:
                kept[r, c] = False
    return kept

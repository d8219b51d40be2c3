# SPDX-License-Identifier: Apache-2.0
"""Stage 2: which weights go. How sparse each layer is, how many weights each row loses, and the zeroing itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stun_ext import ops

_MOST_SPARSE = 0.99  # no layer is emptied, however outlier-poor


@dataclass
class Moments:
    """Power sums of weights, from which kurtosis follows; sums of parts add up."""

    count: int = 0
    powers: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def add(self, weights: torch.Tensor, *, nonzero_only: bool = False) -> None:
        """Adds a tensor of weights, or its non-zero entries (zeros add nothing to a power sum)."""
        values = weights.detach().to(torch.float32)
        square = values.square()
        sums = [values.sum(), square.sum(), (square * values).sum(), square.square().sum()]
        self.count += int(torch.count_nonzero(values)) if nonzero_only else values.numel()
        first, second, third, fourth = (a + float(b) for a, b in zip(self.powers, sums, strict=True))
        self.powers = (first, second, third, fourth)

    @property
    def kurtosis(self) -> float:
        """E[((θ−μ)/σ)⁴]; 3 for a normal distribution, NaN where all weights are equal."""
        if self.count == 0:
            return float("nan")
        m1, m2, m3, m4 = (power / self.count for power in self.powers)
        variance = m2 - m1 * m1
        if variance <= 0:
            return float("nan")
        return (m4 - 4 * m1 * m3 + 6 * m1 * m1 * m2 - 3 * m1**4) / variance**2


@dataclass
class OutlierCount:
    """Share of a layer's scores above M times their mean: OWL's layer outlier distribution (arXiv 2310.05175)."""

    total: float = 0.0
    count: int = 0
    above: int = 0

    @property
    def percent(self) -> float:
        """100 · share of outliers."""
        return 100.0 * self.above / max(self.count, 1)


def scores(weight: torch.Tensor, input_sq_norm: torch.Tensor | None) -> torch.Tensor:
    """|W|·sqrt(input_sq_norm), float32 [R, C] on the weight's device; |W| without norms."""
    magnitude = weight.detach().to(torch.float32).abs()
    if input_sq_norm is None:
        return magnitude
    return magnitude * input_sq_norm.to(weight.device, torch.float32).sqrt()


def outlier_percent(matrices: Iterable[tuple[torch.Tensor, torch.Tensor | None]], threshold: float) -> float:
    """OWL's D of one layer: 100 · mean[A > M·mean(A)] over all its scores A.

    Args:
        matrices: (weight, input_sq_norm) of every pruned matrix of the layer; gone through twice.
        threshold: OWL's M.
    """
    found = OutlierCount()
    for weight, norms in matrices:
        found.total += float(scores(weight, norms).sum(dtype=torch.float64))
        found.count += weight.numel()
    limit = threshold * found.total / max(found.count, 1)
    for weight, norms in matrices:
        found.above += int(torch.count_nonzero(scores(weight, norms) > limit))
    return found.percent


def owl_sparsities(
    outliers: Sequence[float], parameters: Sequence[int], sparsity: float, spread: float
) -> list[float]:
    """Layer sparsities of OWL (arXiv 2310.05175): layers with more outliers keep more.

    r = (D − min D)/(max D − min D)·2λ and keep = r − mean(r) + (1 − S). The mean is weighted by parameters (layers
    may keep different numbers of experts), clipped to [0, 0.99] sparsity and solved again so that the weighted total is
    S. Uniform when all layers look alike.

    Args:
        outliers: D per layer, in percent.
        parameters: weights per layer.
        sparsity: S in [0, 0.99].
        spread: λ.
    """
    values = np.asarray(outliers, dtype=np.float64)
    weights = np.asarray(parameters, dtype=np.float64)
    if weights.sum() == 0:
        return [0.0] * len(values)
    low, high = values.min(), values.max()
    if high - low <= 1e-12 * max(high, 1.0):
        return [sparsity] * len(values)
    keep_more = (values - low) / (high - low) * 2 * spread
    share = weights / weights.sum()
    wanted = sparsity - (keep_more - share @ keep_more)

    def clipped(shift: float) -> np.ndarray:
        return np.asarray(np.clip(wanted + shift, 0.0, _MOST_SPARSE))

    lower, upper = -2.0, 2.0
    for _ in range(100):  # the weighted total grows with the shift, so bisection ends at the asked total
        middle = 0.5 * (lower + upper)
        if share @ clipped(middle) < sparsity:
            lower = middle
        else:
            upper = middle
    result = clipped(0.0)
    if abs(share @ result - sparsity) > 1e-12:
        result = clipped(upper)
    return [float(value) for value in result]


def prune_counts(rows: int, cols: int, sparsity: float) -> np.ndarray:
    """Weights to prune per row, int64 [rows]: int(cols·s) each, the remainder spread evenly over the rows.

    Plain truncation undershoots the asked sparsity by up to one weight a row (65% asked, 64.6% reached on narrow
    experts); here the matrix as a whole loses round(rows·cols·s).
    """
    total = round(rows * cols * sparsity)
    upto = np.arange(rows + 1, dtype=np.int64) * total // rows
    return np.minimum(np.diff(upto), cols)


def prune_matrix(
    weight: torch.Tensor,
    input_sq_norm: torch.Tensor | None,
    *,
    sparsity: float,
    pattern: tuple[int, int] | None = None,
) -> int:
    """Zeroes weights of one matrix in place; returns its exact zeros afterwards.

    Args:
        weight: [out, in], any strides, the rows being output features.
        input_sq_norm: float32 [in], Wanda's squared input norms; None prunes by magnitude.
        sparsity: share to zero (ignored with a pattern).
        pattern: (n, m) keeps n of every m inputs.
    """
    norms = None if input_sq_norm is None else input_sq_norm.to(weight.device, torch.float32)
    if pattern is not None:
        return ops.nm_prune_(weight, norms, *pattern)
    counts = prune_counts(weight.shape[0], weight.shape[1], sparsity)
    return ops.wanda_prune_(weight, norms, counts)

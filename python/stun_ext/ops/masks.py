# SPDX-License-Identifier: Apache-2.0
"""Which weights stay."""

from __future__ import annotations

from stun_ext import _core
from stun_ext.ops._arrays import (
    Array,
    ArrayT,
    BitsName,
    host_norms,
    into,
    like,
    share_or_counts,
    to_host,
    write_back,
)
from stun_ext.ops._gpu import on_gpu, wanda_on_gpu


def wanda_scores(W: ArrayT, input_sq_norm: Array | None = None, *, dtype: BitsName | None = None) -> ArrayT:
    """Wanda scores (Wanda, equation 1): S_ij = |W_ij| * sqrt(input_sq_norm_j).

    Args:
        W: Weights, [R, C], float32, float16 or bfloat16, finite; a row is one output feature.
        input_sq_norm: [C], float32 (float64 is rounded to it): per input feature the sum of its square over
            the calibration tokens that reached this matrix; finite, >= 0. None means magnitude: S = |W|.
        dtype: "bfloat16" if W holds bfloat16 bits as uint16.

    Returns:
        float32 [R, C].

    Raises:
        TypeError: W or `input_sq_norm` is no array, or of another dtype.
        ValueError: Shapes disagree, NaN or Inf (the row or feature is named), or a negative norm.
    """
    weight, norms = to_host("wanda_scores", "W", W), host_norms("wanda_scores", input_sq_norm)
    return like(W, _core.wanda_scores(weight, norms, dtype))


def wanda_mask(
    W: ArrayT,
    input_sq_norm: Array | None,
    sparsity: float | Array,
    *,
    dtype: BitsName | None = None,
    out: ArrayT | None = None,
) -> ArrayT:
    """The weights that Wanda keeps: in every row the lowest scores go, exactly as many as asked.

    Ties go from the lowest column up, as a stable ascending sort has them.

    Args:
        W: Weights, [R, C], as in `wanda_scores`.
        input_sq_norm: [C] or None (magnitude), as in `wanda_scores`.
        sparsity: A share in [0, 1): int(C * sparsity) weights of each row go, truncated as in the released
            code. Or integers, [R]: the number of weights to prune in each row, in [0, C].
        dtype: "bfloat16" if W holds bfloat16 bits as uint16.
        out: Where the mask goes, bool [R, C] with contiguous rows, apart from W's memory; by default a new array,
            which the system clears first.

    Returns:
        bool [R, C], True = kept: `out` where it is given.

    Raises:
        TypeError: As `wanda_scores`, `sparsity` is neither a number nor an integer array, or `out` is no bool array.
        ValueError: As `wanda_scores`, `sparsity` is out of its range or of the wrong length, or `out` is read-only or
            not as above. Where W holds NaN or Inf, what `out` holds then is unspecified.
    """
    gpu = wanda_on_gpu(W, input_sq_norm, sparsity, dtype)
    if gpu is not None and (mask := gpu.mask(out)) is not None:
        gpu.run("wanda_mask", _core.cuda_wanda_mask, gpu.norms, gpu.each, gpu.counts, mask)
        return mask if out is None else out
    weight, norms = to_host("wanda_mask", "W", W), host_norms("wanda_mask", input_sq_norm)
    share = share_or_counts("wanda_mask", sparsity)
    return into("wanda_mask", W, out, lambda to: _core.wanda_mask(weight, norms, share, dtype, to))


def wanda_prune_(
    W: Array, input_sq_norm: Array | None, sparsity: float | Array, *, dtype: BitsName | None = None
) -> int:
    """Zeroes in place the weights that `wanda_mask` would prune; no mask is made.

    Args:
        W: Writable weights, [R, C], as in `wanda_scores`; any strides, so ``expert.T`` of a transposed expert
            works. A transposed tensor on a GPU is copied there and back, one of any other device to the host and back.
        input_sq_norm: As in `wanda_mask`.
        sparsity: As in `wanda_mask`.
        dtype: "bfloat16" if W holds bfloat16 bits as uint16.

    Returns:
        How many weights of W are exactly zero afterwards, those included that were zero before.

    Raises:
        TypeError: As `wanda_mask`.
        ValueError: As `wanda_mask`, or W is read-only or shares memory between its own elements. W is
            unchanged then; on a GPU, where NaN and Inf are met only while pruning, their rows are.
    """
    gpu = wanda_on_gpu(W, input_sq_norm, sparsity, dtype)
    if gpu is not None:
        return gpu.run_in_place("wanda_prune", _core.cuda_wanda_prune_, gpu.norms, gpu.each, gpu.counts)
    weight, norms = to_host("wanda_prune_", "W", W), host_norms("wanda_prune_", input_sq_norm)
    zeros = _core.wanda_prune_(weight, norms, share_or_counts("wanda_prune_", sparsity), dtype)
    write_back(W, weight)
    return zeros


def nm_mask(
    scores: ArrayT, n: int, m: int, *, dtype: BitsName | None = None, out: ArrayT | None = None
) -> ArrayT:
    """n:m mask: of every m consecutive columns the n highest scores stay; ties prune the lowest column first.

    Args:
        scores: [R, C], float32, float16 or bfloat16, without NaN; C a multiple of m.
        n: Kept per block, 1 <= n < m.
        m: Block length.
        dtype: "bfloat16" if `scores` holds bfloat16 bits as uint16.
        out: Where the mask goes, as in `wanda_mask`.

    Returns:
        bool [R, C], True = kept: `out` where it is given.

    Raises:
        TypeError: `scores` is no array, or of another dtype, or `out` is no bool array.
        ValueError: n or m is illegal, C is no multiple of m, NaN (the row is named; what `out` holds then is
            unspecified), or `out` is not as in `wanda_mask`.
    """
    gpu = on_gpu(scores, None, dtype)
    if gpu is not None and (mask := gpu.mask(out)) is not None:
        gpu.run("nm_mask", _core.cuda_nm_mask, n, m, mask)
        return mask if out is None else out
    host = to_host("nm_mask", "scores", scores)
    return into("nm_mask", scores, out, lambda to: _core.nm_mask(host, n, m, dtype, to))


def nm_prune_(W: Array, input_sq_norm: Array | None, n: int, m: int, *, dtype: BitsName | None = None) -> int:
    """n:m pruning by Wanda, in place: of every m consecutive weights those with the n highest scores stay.

    Ties prune the lowest column first. No scores and no mask are stored.

    Args:
        W: Writable weights, [R, C], as in `wanda_prune_`; C a multiple of m.
        input_sq_norm: [C] or None (magnitude), as in `wanda_scores`.
        n: Kept per block, 1 <= n < m.
        m: Block length.
        dtype: "bfloat16" if W holds bfloat16 bits as uint16.

    Returns:
        How many weights of W are exactly zero afterwards, those included that were zero before.

    Raises:
        TypeError: As `wanda_scores`.
        ValueError: As `wanda_scores`, n or m is illegal, C is no multiple of m, or W is read-only or shares memory
            between its own elements. W is unchanged then; on a GPU the blocks with NaN or Inf are.
    """
    gpu = on_gpu(W, input_sq_norm, dtype)
    if gpu is not None:
        return gpu.run_in_place("nm_prune", _core.cuda_nm_prune_, gpu.norms, n, m)
    weight, norms = to_host("nm_prune_", "W", W), host_norms("nm_prune_", input_sq_norm)
    zeros = _core.nm_prune_(weight, norms, n, m, dtype)
    write_back(W, weight)
    return zeros


def apply_mask_(W: Array, mask: Array, *, dtype: BitsName | None = None) -> None:
    """Zeroes in place the weights whose mask is False; the others keep their bits.

    Args:
        W: Writable weights, [R, C], float32, float16 or bfloat16, any strides. A tensor of another device is
            copied to the host and back.
        mask: bool [R, C].
        dtype: "bfloat16" if W holds bfloat16 bits as uint16.

    Raises:
        TypeError: W or `mask` is no array, or of another dtype.
        ValueError: Shapes disagree, or W is read-only or shares memory between its own elements.
    """
    weight = to_host("apply_mask_", "W", W)
    _core.apply_mask_(weight, to_host("apply_mask_", "mask", mask), dtype)
    write_back(W, weight)

# SPDX-License-Identifier: Apache-2.0
"""The experts of a layer in one call."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from stun_ext import _core
from stun_ext.ops._arrays import Array, ArrayT, BitsName, is_tensor, like, to_host
from stun_ext.ops.packed import PackedMatrix


class Experts:
    """The routed experts of a layer: matrices, packed or dense, and what lies between their projections.

    A hidden row is ``h = up(x) + up_bias``, and what the down projection reads is

    * gated: ``a = phi(min(gate, limit)) * (clip(up, -limit, limit) + up_offset)``; h holds all gate rows, then all up
      rows, or, interleaved, gate 0, up 0, gate 1, …;
    * not gated: ``a = phi(h)``.

    Args:
        up: For each expert an `ops.PackedMatrix` or an array: [2 I, H] if gated, else [I, H].
        down: For each expert [H, I].
        activation: phi: "silu" (z * sigmoid(alpha * z)), "gelu", "gelu_tanh", "relu" or "relu_squared".
        is_gated: Whether there is a gate projection.
        is_interleaved: How gate and up lie in `up`.
        alpha: Of "silu", positive.
        limit: Positive; of gated experts.
        up_offset: As above. gpt-oss is alpha 1.702, limit 7, up_offset 1, interleaved.
        up_bias: [E, rows of up], or None.
        down_bias: [E, H], or None.
        dtype: "bfloat16" if arrays hold bfloat16 bits as uint16.

    Raises:
        TypeError: Something is no array, or of another dtype.
        ValueError: Shapes do not fit, there is no expert, or a number is out of range.
    """

    __slots__ = ("_handle",)

    def __init__(
        self,
        up: Sequence[PackedMatrix | Array],
        down: Sequence[PackedMatrix | Array],
        *,
        activation: str = "silu",
        is_gated: bool = True,
        is_interleaved: bool = False,
        alpha: float = 1.0,
        limit: float = math.inf,
        up_offset: float = 0.0,
        up_bias: Array | None = None,
        down_bias: Array | None = None,
        dtype: BitsName | None = None,
    ) -> None:
        def handles(name: str, matrices: Sequence[PackedMatrix | Array]) -> list[object]:
            return [
                matrix._handle if isinstance(matrix, PackedMatrix) else to_host("Experts", name, matrix)
                for matrix in matrices
            ]

        def bias_of(name: str, bias: Array | None) -> object:
            return None if bias is None else to_host("Experts", name, bias)

        self._handle = _core.Experts(
            handles("up", up),
            handles("down", down),
            activation,
            is_gated,
            is_interleaved,
            alpha,
            limit,
            up_offset,
            bias_of("up_bias", up_bias),
            bias_of("down_bias", down_bias),
            dtype,
        )

    @property
    def num_experts(self) -> int:
        """E."""
        return self._handle.num_experts

    @property
    def hidden_size(self) -> int:
        """H."""
        return self._handle.hidden_size

    @property
    def intermediate_size(self) -> int:
        """I."""
        return self._handle.intermediate_size


def expert_forward(
    x: ArrayT, top_k_index: Array, top_k_weights: Array, experts: Experts, *, dtype: BitsName | None = None
) -> ArrayT:
    """The expert block of a layer: ``y[t] = sum_j top_k_weights[t, j] * down_e(a_e(x[t]))``, e = top_k_index[t, j].

    Each expert's weights are read once for all of its tokens. Products are summed in float32 as `packed_matmul` does; a
    is rounded to x's dtype, and nothing else is before y. Results are the same for every number of threads.

    Args:
        x: Tokens, [T, H], float32, float16 or bfloat16.
        top_k_index: Experts of each token, [T, k], int64. Ids outside of [0, E) stand for experts of another process
            and are skipped.
        top_k_weights: Routing weights, [T, k], float32, float16 or bfloat16 (a torch tensor).
        experts: The layer's.
        dtype: "bfloat16" if x holds bfloat16 bits as uint16.

    Returns:
        [T, H] of x's kind and dtype.

    Raises:
        TypeError: Something is no array, or of another dtype.
        ValueError: Shapes disagree.
    """
    operation = "expert_forward"
    tokens = to_host(operation, "x", x)
    out = tokens.new_empty(tokens.shape) if is_tensor(tokens) else np.empty_like(tokens)
    _core.expert_forward(
        tokens,
        to_host(operation, "top_k_index", top_k_index),
        to_host(operation, "top_k_weights", top_k_weights),
        experts._handle,
        out,
        dtype,
    )
    return like(x, out)

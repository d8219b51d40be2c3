# SPDX-License-Identifier: Apache-2.0
"""Packed weights, and products with them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stun_ext import _core
from stun_ext.ops._arrays import Array, ArrayT, BitsName, like, new_like, to_host, write_back


class PackedMatrix:
    """Pruned weights as a bitmap and the values that are left; made by `pack` or `packed_from_buffers`.

    Of bfloat16 weights of which a share q is left it takes q + 1/16 of the dense bytes. The layout is that of the C++
    header ``stun_ext/sparse.hpp``; it is the same on every machine.
    """

    __slots__ = ("_handle",)
    _handle: _core.PackedMatrix

    def __init__(self) -> None:
        raise TypeError("[PackedMatrix] use pack or packed_from_buffers")

    @classmethod
    def _of(cls, handle: _core.PackedMatrix) -> PackedMatrix:
        self = object.__new__(cls)
        self._handle = handle
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the dense weight."""
        return self._handle.shape

    @property
    def dtype(self) -> str:
        """The values' type: "float32", "float16" or "bfloat16"."""
        return self._handle.dtype

    @property
    def nnz(self) -> int:
        """Weights that are present."""
        return self._handle.nnz

    @property
    def values(self) -> npt.NDArray[np.uint8]:
        """The values' bytes, then zeros; read-only."""
        return self._handle.values

    @property
    def masks(self) -> npt.NDArray[np.uint32]:
        """One bit per weight; read-only."""
        return self._handle.masks

    @property
    def nbytes(self) -> int:
        """Bytes of both buffers."""
        return int(self.values.nbytes + self.masks.nbytes)

    def __repr__(self) -> str:
        """Shape, dtype and number of values."""
        return f"PackedMatrix(shape={self.shape}, dtype={self.dtype!r}, nnz={self.nnz})"


def pack(W: Array, *, dtype: BitsName | None = None) -> PackedMatrix:
    """Packs a weight of which many elements are zero; `unpack` gives it back bit for bit.

    Args:
        W: Weights, [R, C], float32, float16 or bfloat16, any strides and values. What has the bits of +0 is absent;
            -0.0 and NaN are kept, so zero weights by `apply_mask_` or ``W[~mask] = 0``: ``W * mask`` leaves -0.0.
        dtype: "bfloat16" if W holds bfloat16 bits as uint16.

    Returns:
        A matrix in memory of its own.

    Raises:
        TypeError: W is no array, or of another dtype.
        ValueError: W is not 2-D.
    """
    return PackedMatrix._of(_core.pack(to_host("pack", "W", W), dtype))


def packed_from_buffers(
    shape: tuple[int, int], dtype: str, values: npt.NDArray[np.uint8], masks: npt.NDArray[np.uint32]
) -> PackedMatrix:
    """A packed matrix in memory that is there already, for instance of a mapped file; nothing is copied.

    Every mask is read and counted, and damaged or hostile buffers are refused: whatever is accepted is safe to use,
    provided that the memory does not change afterwards.

    Args:
        shape: (rows, columns) of the dense weight.
        dtype: "float32", "float16" or "bfloat16".
        values: uint8, contiguous, as `PackedMatrix.values`.
        masks: uint32, contiguous, as `PackedMatrix.masks`.

    Returns:
        A matrix that keeps the arrays alive.

    Raises:
        TypeError: A buffer is no NumPy array of its dtype.
        ValueError: A size, an alignment or the number of bits set is wrong, or there is something where zeros belong.
    """
    return PackedMatrix._of(_core.packed_from_buffers(shape[0], shape[1], dtype, values, masks))


def unpack(packed: PackedMatrix, out: ArrayT, *, dtype: BitsName | None = None) -> ArrayT:
    """Writes the dense weight, bit for bit.

    Args:
        packed: Of `pack` or `packed_from_buffers`.
        out: Writable, of the packed weight's shape and dtype, any strides.
        dtype: "bfloat16" if `out` holds bfloat16 bits as uint16.

    Returns:
        `out`.

    Raises:
        TypeError: `out` is no array, or of another dtype.
        ValueError: `out` is of another shape or dtype, read-only, or shares memory between its own elements.
    """
    host = to_host("unpack", "out", out)
    _core.unpack(packed._handle, host, dtype)
    write_back(out, host)
    return out


def packed_matmul(x: ArrayT, packed: PackedMatrix, *, dtype: BitsName | None = None) -> ArrayT:
    """X Wᵀ with a packed W, as ``torch.nn.functional.linear(x, W)``.

    Products are summed in float32; the error before the result is rounded is at most C * 2**-23 * sum(|x * w|).
    Results are the same for every number of threads, but the order of the sum depends on the number of tokens and on
    the instruction set. bfloat16 times bfloat16 is fastest where the processor has instructions for it, which read
    subnormal numbers as 0.

    Args:
        x: Tokens, [M, C], float32, float16 or bfloat16.
        packed: A weight [R, C].
        dtype: "bfloat16" if x holds bfloat16 bits as uint16.

    Returns:
        [M, R] of x's dtype.

    Raises:
        TypeError: x is no array, or of another dtype.
        ValueError: x is not 2-D, or has another number of columns than the weight.
    """
    tokens = to_host("packed_matmul", "x", x)
    out = new_like(tokens, packed.shape[0])
    _core.packed_matmul(tokens, packed._handle, out, dtype)
    return like(x, out)


def dense_matmul(x: ArrayT, W: Array, *, dtype: BitsName | None = None) -> ArrayT:
    """`packed_matmul` with a dense W: faster where fewer than about 15% of the weights are zero.

    Args:
        x: Tokens, [M, C], float32, float16 or bfloat16.
        W: Weights, [R, C], float32, float16 or bfloat16; the elements of a row lie together.
        dtype: "bfloat16" if x and W hold bfloat16 bits as uint16.

    Returns:
        [M, R] of x's dtype.

    Raises:
        TypeError: x or W is no array, or of another dtype.
        ValueError: Shapes disagree, or the elements of a row do not lie together.
    """
    tokens, weight = to_host("dense_matmul", "x", x), to_host("dense_matmul", "W", W)
    rows = weight.shape[0] if getattr(weight, "ndim", 0) == 2 else 0  # else refused below
    out = new_like(tokens, rows)
    _core.dense_matmul(tokens, weight, out, dtype)
    return like(x, out)

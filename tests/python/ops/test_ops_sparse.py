# SPDX-License-Identifier: Apache-2.0
"""Packed weights: bit for bit there and back, products against torch and float64, buffers that lie."""

from __future__ import annotations

import mmap
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from stun_ext import ops

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def pruned(
    rows: int, cols: int, density: float = 0.5, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(rows, cols, generator=generator).to(dtype)
    W[torch.rand(rows, cols, generator=generator) >= density] = 0
    return W


def bits(W: torch.Tensor) -> torch.Tensor:
    return W.contiguous().view(torch.int32 if W.dtype == torch.float32 else torch.int16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1), (4, 32), (7, 100), (64, 257)])
def test_round_trip(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    W = pruned(*shape, dtype=dtype)
    if W.numel() > 5:
        W.view(-1)[0] = -0.0
        W.view(-1)[1] = float("nan")
        bits(W).view(-1)[2] = -5  # a NaN with a payload
    packed = ops.pack(W)
    assert packed.shape == shape
    assert packed.dtype == str(dtype).removeprefix("torch.")
    assert packed.nnz == int((bits(W) != 0).sum())
    out = torch.full_like(W, 7)
    assert ops.unpack(packed, out) is out
    assert torch.equal(bits(out), bits(W))
    transposed = torch.full((shape[1], shape[0]), 7, dtype=dtype).T
    ops.unpack(ops.pack(W.T.contiguous().T), transposed)
    assert torch.equal(bits(transposed), bits(W))


def test_size_of_an_expert() -> None:
    W = pruned(768, 2048, 0.45)
    share = float((W != 0).float().mean())
    assert ops.pack(W).nbytes / (2 * W.numel()) == pytest.approx(share + 1 / 16, rel=0.01)


def test_kinds_of_arrays() -> None:
    W = pruned(9, 70)
    as_bits = W.view(torch.int16).numpy().view(np.uint16)
    as_ml = as_bits.view(ml_dtypes.bfloat16)
    expected = ops.pack(W)
    for packed in (ops.pack(as_bits, dtype="bfloat16"), ops.pack(as_ml)):
        np.testing.assert_array_equal(packed.values, expected.values)
        np.testing.assert_array_equal(packed.masks, expected.masks)
    out = np.empty_like(as_bits)
    assert ops.unpack(expected, out, dtype="bfloat16") is out
    np.testing.assert_array_equal(out, as_bits)
    x = torch.randn(3, 70).bfloat16()
    of_bits = ops.packed_matmul(x.view(torch.int16).numpy().view(np.uint16), expected, dtype="bfloat16")
    assert of_bits.dtype == np.uint16
    np.testing.assert_array_equal(
        of_bits, ops.packed_matmul(x, expected).view(torch.int16).numpy().view(np.uint16)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("tokens", [0, 1, 2, 5, 16, 40])
def test_products(dtype: torch.dtype, x_dtype: torch.dtype, tokens: int) -> None:
    W, x = pruned(77, 530, dtype=dtype), torch.randn(tokens, 530).to(x_dtype)
    exact = x.double() @ W.double().T
    bound = 530 * 2.0**-23 * (x.double().abs() @ W.double().abs().T)
    bound += exact.abs() * torch.finfo(x_dtype).eps / 2 + 1e-30
    packed = ops.pack(W)
    for y in (ops.packed_matmul(x, packed), ops.dense_matmul(x, W)):
        assert y.dtype == x_dtype
        assert y.shape == (tokens, 77)
        assert bool(((y.double() - exact).abs() <= bound).all())


def test_products_with_torch() -> None:
    W, x = pruned(256, 768), torch.randn(8, 768).bfloat16()
    expected = torch.nn.functional.linear(x, W)
    torch.testing.assert_close(ops.packed_matmul(x, ops.pack(W)), expected, rtol=2**-7, atol=0.02)


def test_a_mapped_file_is_used_in_place(tmp_path: Path) -> None:
    W = pruned(100, 300)
    packed = ops.pack(W)
    path = tmp_path / "packed.bin"
    path.write_bytes(packed.values.tobytes() + packed.masks.tobytes())
    with path.open("rb") as file:
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    values, masks = np.split(mapped, [packed.values.nbytes])
    again = ops.packed_from_buffers((100, 300), "bfloat16", values, masks.view(np.uint32))
    assert again.values.ctypes.data == values.ctypes.data
    assert again.masks.ctypes.data == masks.ctypes.data
    assert not again.values.flags.writeable
    del mapped, values, masks
    x = torch.randn(3, 300).bfloat16()
    assert torch.equal(ops.packed_matmul(x, again), ops.packed_matmul(x, packed))


def test_buffers_keep_the_matrix_alive() -> None:
    values = ops.pack(pruned(50, 400)).values
    np.testing.assert_array_equal(values, ops.pack(pruned(50, 400)).values)


def test_damaged_buffers_are_refused() -> None:
    packed = ops.pack(pruned(10, 70))
    values, masks = packed.values.copy(), packed.masks.copy()

    def refused(match: str, shape: tuple[int, int] = (10, 70), dtype: str = "bfloat16") -> None:
        with pytest.raises(ValueError, match=match):
            ops.packed_from_buffers(shape, dtype, values, masks)

    refused(r"\[from_buffers\] masks must hold", shape=(13, 70))
    refused(r"\[from_buffers\] masks must be 0 outside", shape=(9, 70))
    refused(r"\[from_buffers\] rows and cols must not be negative", shape=(-1, 70))
    refused(r"\[from_buffers\] values must hold", dtype="float32")
    refused(r"\[from_buffers\] dtype must be", dtype="int64")
    masks[:4] = 0xFFFFFFFF
    refused(r"\[from_buffers\] values must hold")
    masks[:] = packed.masks
    values[-1] = 1
    refused(r"\[from_buffers\] values must end with zero bytes")
    values = values[:-1]
    refused(r"\[from_buffers\] values must hold")
    values = np.zeros(2 * packed.values.size, np.uint8)[::2]
    refused(r"\[from_buffers\] values must be one-dimensional and contiguous")
    with pytest.raises(TypeError, match=r"\[from_buffers\] values must be a NumPy array of uint8"):
        ops.packed_from_buffers((10, 70), "bfloat16", packed.masks, packed.masks)  # type: ignore[arg-type]


def test_errors() -> None:
    packed = ops.pack(pruned(10, 70))
    with pytest.raises(
        ValueError, match=r"\[packed_matmul\] x must have the 70 columns of the weight, got \[2, 71\]"
    ):
        ops.packed_matmul(torch.zeros(2, 71), packed)
    with pytest.raises(ValueError, match=r"\[packed_matmul\] x must have 2 dimensions, got 1"):
        ops.packed_matmul(torch.zeros(70), packed)
    with pytest.raises(TypeError, match=r"\[packed_matmul\] x must have dtype"):
        ops.packed_matmul(torch.zeros(2, 70, dtype=torch.float64), packed)
    with pytest.raises(
        TypeError, match=r"\[pack\] W must have dtype float32, float16 or bfloat16, got int64"
    ):
        ops.pack(torch.zeros(2, 70, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\[unpack\] weight must be \[10, 70\] of bfloat16, got \[10, 71\]"):
        ops.unpack(packed, torch.zeros(10, 71).bfloat16())
    with pytest.raises(ValueError, match=r"\[dense_matmul\] weight must have rows of contiguous elements"):
        ops.dense_matmul(torch.zeros(2, 70), torch.zeros(70, 10).T)
    with pytest.raises(TypeError, match="use pack"):
        ops.PackedMatrix()

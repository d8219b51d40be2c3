# SPDX-License-Identifier: Apache-2.0
"""Wanda and n:m against stable sorts and the released code's masks; pruning in place."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import ops_reference as ref
import pytest
import torch

from stun_ext import ops

DTYPES = ["float32", "float16", "bfloat16"]
SHAPES = [(1, 1), (1, 17), (5, 1), (7, 33), (3, 64), (16, 257), (33, 1000)]


def norms_of(rng: np.random.Generator, cols: int, *, ties: bool = False) -> np.ndarray:
    values = rng.integers(0, 3, cols) if ties else rng.random(cols) * 50
    return values.astype(np.float32)


def float32_scores(W: torch.Tensor, norms: np.ndarray | None) -> np.ndarray:
    scores = W.float().abs().numpy()
    return (
        scores if norms is None else scores * np.sqrt(norms)
    )  # not torch's root: it is not always correctly rounded


@pytest.mark.parametrize("case", range(40))
def test_released_masks(data: Path, case: int) -> None:
    with np.load(data / "wanda_masks.npz") as vectors:
        bits, norms, sparsity, packed = (vectors[f"{case}_{name}"] for name in ("W", "x2", "s", "pruned"))
    pruned = np.unpackbits(packed, axis=1, bitorder="little", count=bits.shape[1]).astype(bool)
    assert pruned.any()
    W = bits.view(np.uint16)
    np.testing.assert_array_equal(~ops.wanda_mask(W, norms, float(sparsity), dtype="bfloat16"), pruned)
    tensor = torch.from_numpy(bits.copy()).view(torch.bfloat16)
    np.testing.assert_array_equal(
        ~ops.wanda_mask(tensor, torch.from_numpy(norms), float(sparsity)).numpy(), pruned
    )
    ops.wanda_prune_(tensor, norms, float(sparsity))
    np.testing.assert_array_equal(tensor.view(torch.int16).numpy(), np.where(pruned, 0, bits))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("magnitude", [False, True])
def test_scores(shape: tuple[int, int], dtype: str, magnitude: bool) -> None:
    rng = np.random.default_rng(shape[1])
    W, norms = ref.weight(rng, shape, dtype), None if magnitude else norms_of(rng, shape[1])
    got = ops.wanda_scores(ref.as_numpy(W), norms)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, float32_scores(W, norms))  # bit for bit: one root, one product


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("magnitude", [False, True])
def test_mask_and_prune(shape: tuple[int, int], dtype: str, ties: bool, magnitude: bool) -> None:
    rng = np.random.default_rng(shape[0])
    W = ref.weight(rng, shape, dtype, ties=ties)
    norms = None if magnitude else norms_of(rng, shape[1], ties=ties)
    scores = float32_scores(W, norms)
    per_row = rng.integers(0, shape[1] + 1, shape[0])
    for sparsity in (0, 0.1, 0.5, 0.65, 0.999, per_row):
        counts = per_row if isinstance(sparsity, np.ndarray) else np.full(shape[0], int(shape[1] * sparsity))
        expected = ref.wanda_kept(scores, counts)
        got = ops.wanda_mask(ref.as_numpy(W), norms, sparsity)
        assert got.dtype == np.bool_
        np.testing.assert_array_equal(got, expected)
        pruned = W.clone()
        zeros = ops.wanda_prune_(pruned, norms, sparsity)
        assert torch.equal(pruned, torch.where(torch.from_numpy(expected), W, torch.zeros_like(W)))
        assert zeros == int((pruned == 0).sum())


def test_pruned_weights_are_positive_zeros_and_kept_bits_survive() -> None:
    W = np.array([[-1.0, -0.0, 2.0, -3.0]], dtype=np.float32)
    assert ops.wanda_prune_(W, None, np.array([2])) == 2
    assert W.tobytes() == np.array([[0.0, 0.0, 2.0, -3.0]], dtype=np.float32).tobytes()
    W = np.array([[-1.0, -0.0, 2.0, -3.0]], dtype=np.float32)
    assert ops.wanda_prune_(W, None, np.array([0])) == 1  # the zero that was there counts, and keeps its sign
    assert W.tobytes() == np.array([[-1.0, -0.0, 2.0, -3.0]], dtype=np.float32).tobytes()


def test_pruned_count_truncates_as_python_does() -> None:
    for cols in (3, 10, 29, 100):
        W = np.ones((1, cols), dtype=np.float32)
        for sparsity in np.linspace(0, 0.999, 40):
            assert int((~ops.wanda_mask(W, None, sparsity)).sum()) == int(cols * sparsity)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8"])
def test_counts_of_any_integer_type(dtype: str) -> None:
    W = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    counts = np.array([0, 3, 8], dtype=dtype)
    got = ops.wanda_mask(W, None, counts)
    np.testing.assert_array_equal((~got).sum(axis=1), counts)
    np.testing.assert_array_equal(ops.wanda_mask(W, None, torch.from_numpy(counts)), got)


def test_norms_of_float64_are_rounded_and_strides_followed() -> None:
    rng = np.random.default_rng(1)
    W, norms = rng.standard_normal((4, 20)).astype(np.float32), rng.random(40)
    expected = ops.wanda_scores(W, norms[::2].astype(np.float32))
    np.testing.assert_array_equal(ops.wanda_scores(W, norms[::2]), expected)
    np.testing.assert_array_equal(ops.wanda_scores(W, norms.astype(np.float32)[::2]), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (4, 8), (1, 4), (3, 5), (7, 8), (5, 16)])
@pytest.mark.parametrize("ties", [False, True])
def test_nm(dtype: str, n: int, m: int, ties: bool) -> None:
    S = ref.weight(np.random.default_rng(n * m), (6, 5 * m), dtype, ties=ties)
    got = ops.nm_mask(ref.as_numpy(S), n, m)
    np.testing.assert_array_equal(got, ref.nm_kept(S.float().numpy(), n, m))
    assert (got.reshape(6, 5, m).sum(axis=2) == n).all()


@pytest.mark.parametrize("as_tensor", [False, True])
def test_out(as_tensor: bool) -> None:
    W = ref.weight(np.random.default_rng(3), (9, 40), "float32")
    calls = {
        "wanda_mask": lambda **out: ops.wanda_mask(W if as_tensor else W.numpy(), None, 0.25, **out),
        "nm_mask": lambda **out: ops.nm_mask(W if as_tensor else W.numpy(), 2, 4, **out),
    }
    for name, call in calls.items():
        wide = torch.ones(9, 44, dtype=torch.bool)
        for mask in (torch.zeros(9, 40, dtype=torch.bool), wide[:, 2:42]):
            out = mask if as_tensor else mask.numpy()
            assert call(out=out) is out
            np.testing.assert_array_equal(mask.numpy(), np.asarray(call()))
        assert wide[:, :2].all() and wide[:, 42:].all()
        read_only = np.zeros((9, 40), dtype=bool)
        read_only.flags.writeable = False
        for out, error, message in [
            (np.zeros((9, 41), bool), ValueError, r"must have the shape of \w+, \(9, 40\), got \(9, 41\)"),
            (np.zeros((9, 40), np.uint8), TypeError, "must have dtype bool, got uint8"),
            (np.zeros((40, 9), bool).T, ValueError, "must have contiguous rows"),
            (read_only, ValueError, "read-only"),
            ([[True]], TypeError, "NumPy array"),
        ]:
            with pytest.raises(error, match=rf"^\[{name}\] out .*{message}"):
                call(out=out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "m", "cols"), [(1, 2, 34), (2, 4, 36), (4, 8, 2056), (3, 5, 4100), (5, 16, 80)]
)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("magnitude", [False, True])
def test_nm_prune(dtype: str, n: int, m: int, cols: int, ties: bool, magnitude: bool) -> None:
    rng = np.random.default_rng(cols)
    W = ref.weight(rng, (5, cols), dtype, ties=ties)
    norms = None if magnitude else norms_of(rng, cols, ties=ties)
    kept = torch.from_numpy(ref.nm_kept(float32_scores(W, norms), n, m))
    expected = torch.where(kept, W, torch.zeros_like(W))
    pruned, stored = W.clone(), W.T.contiguous()
    for target in (pruned, stored.T):
        assert ops.nm_prune_(target, norms, n, m) == int((expected == 0).sum())
        assert torch.equal(target, expected)
    assert not torch.signbit(pruned[~kept]).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_apply_mask(dtype: str) -> None:
    rng = np.random.default_rng(2)
    W, mask = ref.weight(rng, (9, 40), dtype), torch.from_numpy(rng.random((9, 40)) < 0.5)
    expected = torch.where(mask, W, torch.zeros_like(W))
    layouts = {
        "plain": mask,
        "transposed": mask.T.contiguous().T,
        "row slice": torch.cat([mask, mask])[:9],
        "column step": mask.repeat_interleave(2, dim=1)[:, ::2],
        "numpy": mask.numpy(),
    }
    for name, layout in layouts.items():
        pruned = W.clone()
        ops.apply_mask_(pruned, layout)
        assert torch.equal(pruned, expected), name


# In place ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_transposed_expert_changes_the_original(dtype: str) -> None:
    rng = np.random.default_rng(3)
    experts = ref.weight(rng, (4, 24, 10), dtype)  # stored (E, in, out)
    before = experts.clone()
    norms = norms_of(rng, 24)
    zeros = ops.wanda_prune_(experts[2].T, norms, 0.5)
    expected = ref.wanda_kept(float32_scores(before[2].T, norms), np.full(10, 12))
    assert torch.equal(experts[2].T, before[2].T * torch.from_numpy(expected))
    assert zeros == 120
    for untouched in (0, 1, 3):
        assert torch.equal(experts[untouched], before[untouched])
    ops.apply_mask_(experts[1].T, torch.zeros(10, 24, dtype=torch.bool))
    assert not experts[1].any()


def test_parameters_are_pruned_in_place() -> None:
    parameter = torch.nn.Parameter(torch.randn(6, 8))
    address = parameter.data_ptr()
    assert ops.wanda_prune_(parameter, None, 0.25) == 12
    assert int((parameter == 0).sum()) == 12
    assert parameter.data_ptr() == address
    assert parameter.requires_grad


def test_nothing_is_written_when_an_argument_is_wrong() -> None:
    W = np.random.default_rng(4).standard_normal((3, 4)).astype(np.float32)
    W[2, 3] = np.nan
    before = W.copy()
    with pytest.raises(ValueError, match=r"row 2"):
        ops.wanda_prune_(W, None, 0.5)
    np.testing.assert_array_equal(W, before)


@pytest.mark.parametrize("shape", [(0, 8), (4, 0)])
def test_no_elements(shape: tuple[int, int]) -> None:
    W = np.zeros(shape, dtype=np.float32)
    norms = np.ones(8, dtype=np.float32) if shape[1] else None
    assert ops.wanda_scores(W, norms).shape == shape
    assert ops.wanda_mask(W, norms, 0.5).shape == shape
    assert ops.wanda_prune_(W, norms, 0.5) == 0
    assert ops.nm_mask(W, 2, 4).shape == shape
    ops.apply_mask_(W, np.zeros(shape, dtype=bool))


# Errors -----------------------------------------------------------------------------------------------------

W_OK = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
N_OK = np.ones(4, dtype=np.float32)


def with_value(array: np.ndarray, index: tuple[int, ...], value: float) -> np.ndarray:
    changed = array.copy()
    changed[index] = value
    return changed


NORM_ERRORS = [
    (np.ones(3, dtype=np.float32), ValueError, r"input_sq_norm .*4.*3"),
    (np.ones(0, dtype=np.float32), ValueError, r"input_sq_norm "),
    (np.ones((1, 4), dtype=np.float32), ValueError, r"input_sq_norm must have 1 dimension, got 2"),
    (
        np.ones(4, dtype=np.float16),
        TypeError,
        r"input_sq_norm must have dtype float32 or float64, got float16",
    ),
    ([1.0] * 4, TypeError, r"input_sq_norm must be a NumPy array .*got list"),
    (with_value(N_OK, (2,), -1), ValueError, r"input_sq_norm .*2"),
    (with_value(N_OK, (2,), np.nan), ValueError, r"input_sq_norm .*2"),
    (with_value(N_OK, (2,), np.inf), ValueError, r"input_sq_norm .*2"),
]
WEIGHT_ERRORS = [
    (with_value(W_OK, (1, 2), np.nan), ValueError, r"row 1"),
    (with_value(W_OK, (1, 2), -np.inf), ValueError, r"row 1"),
    (W_OK[0], ValueError, r"W must have 2 dimensions, got 1"),
    (W_OK.astype(np.float64), TypeError, r"W must have dtype float32, float16 or bfloat16, got float64"),
    (
        W_OK.astype(np.uint16),
        TypeError,
        r"W must have dtype .* got uint16 \(bfloat16 bits need dtype=\"bfloat16\"\)",
    ),
    (W_OK.tolist(), TypeError, r"W must be a NumPy array .*got list"),
    (None, TypeError, r"W must be a NumPy array .*got NoneType"),
]
SPARSITY_ERRORS = [
    (1.0, ValueError, r"sparsity must be in \[0, 1\), got 1"),
    (-0.1, ValueError, r"sparsity must be in \[0, 1\), got -0.1"),
    (float("nan"), ValueError, r"sparsity must be in \[0, 1\), got nan"),
    (True, TypeError, r"sparsity must be a number .*got bool"),
    ("0.5", TypeError, r"sparsity must be a number .*got str"),
    (None, TypeError, r"sparsity must be a number .*got NoneType"),
    (np.array([0.5, 0.5, 0.5]), TypeError, r"sparsity must be .*got an array of float64"),
    (np.array([1, 2]), ValueError, r"3.*2"),
    (np.array([[1, 2, 3]]), ValueError, r"sparsity must have 1 dimension, got 2"),
    (np.array([1, 5, 0]), ValueError, r"5"),
    (np.array([1, -1, 0]), ValueError, r"-1"),
]


@pytest.mark.parametrize(("W", "error", "message"), WEIGHT_ERRORS)
def test_weight_errors(W: object, error: type[Exception], message: str) -> None:
    for name, call in {
        "wanda_scores": lambda: ops.wanda_scores(W, N_OK),
        "wanda_mask": lambda: ops.wanda_mask(W, N_OK, 0.5),
        r"wanda_prune_?": lambda: ops.wanda_prune_(W, N_OK, 0.5),
    }.items():
        with pytest.raises(error, match=rf"^\[{name}\] .*{message}"):
            call()


@pytest.mark.parametrize(("norms", "error", "message"), NORM_ERRORS)
def test_norm_errors(norms: object, error: type[Exception], message: str) -> None:
    for name, call in {
        "wanda_scores": lambda: ops.wanda_scores(W_OK, norms),
        "wanda_mask": lambda: ops.wanda_mask(W_OK, norms, 0.5),
        r"wanda_prune_?": lambda: ops.wanda_prune_(W_OK.copy(), norms, 0.5),
    }.items():
        with pytest.raises(error, match=rf"^\[{name}\] .*{message}"):
            call()


@pytest.mark.parametrize(("sparsity", "error", "message"), SPARSITY_ERRORS)
def test_sparsity_errors(sparsity: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^\[wanda_mask\] .*{message}"):
        ops.wanda_mask(W_OK, N_OK, sparsity)
    with pytest.raises(error, match=rf"^\[wanda_prune_?\] .*{message}"):
        ops.wanda_prune_(W_OK.copy(), N_OK, sparsity)


@pytest.mark.parametrize(
    ("scores", "n", "m", "error", "message"),
    [
        (W_OK, 0, 4, ValueError, r"n .*0"),
        (W_OK, 4, 4, ValueError, r"n .*4"),
        (W_OK, 2, 3, ValueError, r"3"),
        (W_OK, 1, 0, ValueError, r""),
        (W_OK, 1, -4, ValueError, r""),
        (with_value(W_OK, (2, 0), np.nan), 2, 4, ValueError, r"row 2"),
        (W_OK.astype(np.float64), 2, 4, TypeError, r"scores must have dtype .*got float64"),
        (W_OK[0], 2, 4, ValueError, r"scores must have 2 dimensions, got 1"),
    ],
)
def test_nm_errors(scores: object, n: int, m: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^\[nm_mask\] .*{message}"):
        ops.nm_mask(scores, n, m)


@pytest.mark.parametrize(
    ("W", "n", "m", "error", "message"),
    [
        (W_OK, 0, 4, ValueError, r"n must be in \[1, 3\], got 0"),
        (W_OK, 4, 4, ValueError, r"n must be in \[1, 3\], got 4"),
        (W_OK, 1, 1, ValueError, r"m must be at least 2, got 1"),
        (W_OK, 2, 3, ValueError, r"weight must have a multiple of m = 3 columns, got 4"),
        (with_value(W_OK, (1, 2), np.nan), 2, 4, ValueError, r"row 1, column 2"),
        (W_OK.astype(np.float64), 2, 4, TypeError, r"W must have dtype .*got float64"),
    ],
)
def test_nm_prune_errors(W: np.ndarray, n: int, m: int, error: type[Exception], message: str) -> None:
    target = W.copy()
    with pytest.raises(error, match=rf"^\[nm_prune_?\] .*{message}"):
        ops.nm_prune_(target, N_OK, n, m)
    np.testing.assert_array_equal(target, W)  # refused before anything was written
    with pytest.raises(ValueError, match=r"^\[nm_prune_?\] input_sq_norm .*-1 for feature 3"):
        ops.nm_prune_(W_OK.copy(), with_value(N_OK, (3,), -1), 2, 4)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (np.ones((3, 5), dtype=bool), ValueError, r"mask must have the shape of W, \(3, 4\), got \(3, 5\)"),
        (np.ones(4, dtype=bool), ValueError, r"mask must have 2 dimensions, got 1"),
        (np.ones((3, 4), dtype=np.uint8), TypeError, r"mask must have dtype bool, got uint8"),
        (None, TypeError, r"mask must be a NumPy array .*got NoneType"),
    ],
)
def test_apply_mask_errors(mask: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^\[apply_mask_\] .*{message}"):
        ops.apply_mask_(W_OK.copy(), mask)


@pytest.mark.parametrize(
    "call",
    [
        lambda W: ops.wanda_prune_(W, None, 0.5),
        lambda W: ops.nm_prune_(W, None, 2, 4),
        lambda W: ops.apply_mask_(W, np.ones((3, 4), bool)),
    ],
)
def test_in_place_needs_memory_of_its_own(call: object) -> None:
    read_only = W_OK.copy()
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match=r"W must be writable to be changed in place, got a read-only array"):
        call(read_only)
    with pytest.raises(ValueError, match=r"overlap"):
        call(torch.ones(1, 4).expand(3, 4))
    windows = np.lib.stride_tricks.as_strided(np.ones(6, np.float32), (3, 4), (4, 4))
    with pytest.raises(ValueError, match=r"overlap"):
        call(windows)


def test_ml_dtypes_and_uint16_are_the_same_weights() -> None:
    W = np.random.default_rng(5).standard_normal((4, 16)).astype(ml_dtypes.bfloat16)
    bits = W.view(np.uint16).copy()
    np.testing.assert_array_equal(
        ops.wanda_mask(W, None, 0.5), ops.wanda_mask(bits, None, 0.5, dtype="bfloat16")
    )
    assert ops.wanda_prune_(bits, None, 0.5, dtype="bfloat16") == 32
    assert int((bits == 0).sum()) == 32

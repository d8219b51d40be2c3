# SPDX-License-Identifier: Apache-2.0
"""How arrays get in and out: NumPy layouts, DLPack in both versions, devices, lifetimes."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import ml_dtypes
import numpy as np
import ops_reference as ref
import pytest
import torch

from stun_ext import ops

X = np.random.default_rng(0).standard_normal((6, 10)).astype(np.float32)
EXPECTED = ops.pairwise_distances(X)


def layouts(values: np.ndarray) -> dict[str, np.ndarray]:
    """The same matrix in every layout that NumPy can make."""
    rows, cols = values.shape
    wide = np.zeros((2 * rows, 3 * cols), dtype=values.dtype)
    wide[::2, ::3] = values
    read_only = values.copy()
    read_only.flags.writeable = False
    return {
        "plain": values,
        "fortran": np.asfortranarray(values),
        "transposed": values.T.copy().T,
        "sliced": wide[::2, ::3],
        "negative rows": values[::-1].copy()[::-1],
        "negative columns": values[:, ::-1].copy()[:, ::-1],
        "negative both, fortran": np.asfortranarray(values[::-1, ::-1])[::-1, ::-1],
        "offset": np.concatenate([values[:1], values])[1:],
        "read-only": read_only,
    }


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_every_layout_of_every_dtype(dtype: str) -> None:
    values = ref.as_numpy(ref.weight(np.random.default_rng(1), (7, 37), dtype))
    expected = ops.pairwise_distances(values.copy())
    for name, same in layouts(values).items():
        np.testing.assert_array_equal(ops.pairwise_distances(same), expected, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_layout_of_weights_in_place(dtype: str) -> None:
    values = ref.as_numpy(ref.weight(np.random.default_rng(2), (8, 24), dtype, ties=True))
    norms = np.random.default_rng(3).random(24).astype(np.float32)
    kept = ops.wanda_mask(values.copy(), norms, 0.5)
    expected = np.where(kept, values.astype(np.float32), 0)
    for name, same in layouts(values).items():
        np.testing.assert_array_equal(ops.wanda_mask(same, norms, 0.5), kept, err_msg=name)
        if name == "read-only":
            continue
        same = same if name != "plain" else same.copy()
        original = same.base if same.base is not None else same
        ops.wanda_prune_(same, norms, 0.5)
        np.testing.assert_array_equal(same.astype(np.float32), expected, err_msg=name)
        if name == "sliced":  # nothing between the elements was touched
            assert np.count_nonzero(original.astype(np.float32)) == np.count_nonzero(expected)


def test_strides_of_one_row_or_column_do_not_matter() -> None:
    column = np.lib.stride_tricks.as_strided(X, (6, 1), (X.strides[0], 7))
    np.testing.assert_array_equal(ops.pairwise_distances(column), ops.pairwise_distances(X[:, :1].copy()))
    row = np.lib.stride_tricks.as_strided(X, (1, 10), (3, 4))
    np.testing.assert_array_equal(ops.wanda_scores(row), np.abs(X[:1]))


def test_broadcast_rows_are_fine_as_inputs() -> None:
    assert not ops.pairwise_distances(np.broadcast_to(X[0], (6, 10))).any()
    assert not ops.pairwise_distances(torch.from_numpy(X[:1]).expand(6, 10)).any()


def test_bfloat16_by_name_and_by_bits() -> None:
    values = X.astype(ml_dtypes.bfloat16)
    expected = ops.pairwise_distances(values)
    bits = values.view(np.uint16)
    np.testing.assert_array_equal(ops.pairwise_distances(bits, dtype="bfloat16"), expected)
    np.testing.assert_array_equal(ops.pairwise_distances(values, dtype="bfloat16"), expected)
    np.testing.assert_array_equal(
        ops.pairwise_distances(torch.from_numpy(bits), dtype="bfloat16").numpy(), expected
    )
    np.testing.assert_array_equal(ops.linkage(bits, "ward", dtype="bfloat16"), ops.linkage(values, "ward"))
    A = np.ones((6, 6)) - np.eye(6)
    np.testing.assert_array_equal(
        ops.mixed_distances(bits, A, 1, dtype="bfloat16"), ops.mixed_distances(values, A, 1)
    )
    scores = bits[:, :8]
    np.testing.assert_array_equal(
        ops.nm_mask(scores, 2, 4, dtype="bfloat16"), ops.nm_mask(values[:, :8], 2, 4)
    )
    np.testing.assert_array_equal(ops.wanda_scores(bits, dtype="bfloat16"), ops.wanda_scores(values))
    for wrong, error, message in [
        ({"X": X, "dtype": "bfloat16"}, TypeError, r"X must hold bfloat16 bits as uint16 .*got float32"),
        ({"X": bits, "dtype": "float16"}, ValueError, r'dtype must be None or "bfloat16", got "float16"'),
        ({"X": bits}, TypeError, r'got uint16 \(bfloat16 bits need dtype="bfloat16"\)'),
    ]:
        with pytest.raises(
            error, match=rf"^\[pairwise_distances\] {message}" if "None" in message else message
        ):
            ops.pairwise_distances(**wrong)


def misaligned() -> np.ndarray:
    memory = np.zeros(X.nbytes + 1, dtype=np.uint8)
    array = memory[1:].view(np.float32).reshape(X.shape)
    array[...] = X
    assert not array.flags.aligned
    return array


def field_of_records() -> np.ndarray:
    records = np.zeros(
        (6, 10), dtype=[("tag", "i1"), ("value", "<f4"), ("tail", "i1", 2)]
    )  # 7 bytes a record
    return records["value"]


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (X.astype(">f4" if sys.byteorder == "little" else "<f4"), ValueError, r"native byte order"),
        (misaligned(), ValueError, r"misaligned memory \(use array.copy\(\)\)"),
        (field_of_records(), ValueError, r"misaligned memory"),
        (X.astype(np.complex64), TypeError, r"must have dtype .*got complex64"),
        (X.astype(np.longdouble), TypeError, r"must have dtype .*got (longdouble|float128|float96)"),
        (X.astype(object), TypeError, r"must have dtype .*got object"),
        (X.astype(np.int32), TypeError, r"must have dtype .*got int32"),
        (X.astype(bool), TypeError, r"must have dtype .*got bool"),
        (X.astype(ml_dtypes.float8_e4m3fn), TypeError, r"must have dtype .*got float8_e4m3fn"),
        (np.ma.masked_array(X), TypeError, r"must be a plain array, got a masked one"),
        (X[0], ValueError, r"must have 2 dimensions, got 1"),
        (X[None], ValueError, r"must have 2 dimensions, got 3"),
        (X.tolist(), TypeError, r"must be a NumPy array or a tensor with __dlpack__, got list"),
        (None, TypeError, r"got NoneType"),
        (b"1234", TypeError, r"got bytes"),
        (torch.zeros(6, 10, dtype=torch.int32), TypeError, r"must have dtype .*got int32"),
        (torch.zeros(6, 10, dtype=torch.bool), TypeError, r"must have dtype .*got bool"),
        (torch.zeros(6, 10, dtype=torch.complex64), TypeError, r"must have dtype .*got "),
        (torch.zeros(6), ValueError, r"must have 2 dimensions, got 1"),
        (torch.zeros(()), ValueError, r"must have 2 dimensions, got 0"),
        (torch.zeros(6, 10, device="meta"), ValueError, r"meta device"),
    ],
)
def test_refused_arrays(array: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^\[pairwise_distances\] X .*{message}"):
        ops.pairwise_distances(array)


def test_numpy_subclasses_and_scalars() -> None:
    class Tagged(np.ndarray):
        pass

    np.testing.assert_array_equal(ops.pairwise_distances(X.view(Tagged)), EXPECTED)
    assert ops.wanda_mask(X, None, np.float32(0.5)).sum() == 30


# Kinds ------------------------------------------------------------------------------------------------------


def test_the_first_argument_decides_the_kind() -> None:
    norms = np.ones(10, dtype=np.float32)
    assert isinstance(ops.wanda_mask(torch.from_numpy(X), norms, 0.5), torch.Tensor)
    assert isinstance(ops.wanda_mask(X, torch.from_numpy(norms), 0.5), np.ndarray)
    A = torch.ones(6, 6, dtype=torch.int64).fill_diagonal_(0)
    assert isinstance(ops.mixed_distances(X, A, 0.5), np.ndarray)
    assert isinstance(ops.mixed_distances(torch.from_numpy(X), A.numpy(), 0.5), torch.Tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_every_dtype(dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(X).to(dtype)
    expected = ops.pairwise_distances(ref.as_numpy(tensor))
    for same in (
        tensor,
        tensor.T.contiguous().T,
        tensor.repeat(1, 2)[:, :10],
        tensor.clone().requires_grad_(),
    ):
        got = ops.pairwise_distances(same)
        assert isinstance(got, torch.Tensor)
        assert not got.requires_grad
        np.testing.assert_array_equal(got.numpy(), expected)


def test_tensors_of_another_device_go_through_the_host() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    tensor = torch.from_numpy(X).cuda()
    got = ops.pairwise_distances(tensor)
    assert got.device == tensor.device
    np.testing.assert_array_equal(got.cpu().numpy(), EXPECTED)
    assert ops.wanda_prune_(tensor, None, 0.5) == 30
    assert int((tensor == 0).sum()) == 30


# DLPack -----------------------------------------------------------------------------------------------------


class Exported:
    """Hands on an array's DLPack capsule, and nothing else of it."""

    def __init__(self, array: np.ndarray, *, versioned: bool = True) -> None:
        self.array = array
        if versioned:
            self.__class__ = ExportedVersioned

    def __dlpack__(self) -> Any:  # the signature before DLPack 1.0
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class ExportedVersioned(Exported):
    def __dlpack__(self, *, max_version: tuple[int, int]) -> Any:  # type: ignore[override]
        return self.array.__dlpack__(max_version=max_version)


@pytest.mark.parametrize("versioned", [False, True])
def test_capsules_of_both_versions(versioned: bool) -> None:
    for name, same in layouts(X).items():
        if name == "read-only" and not versioned:
            continue  # NumPy does not export it: the old protocol cannot say that it is read-only
        references = sys.getrefcount(same)
        got = ops.pairwise_distances(Exported(same, versioned=versioned))
        assert isinstance(got, np.ndarray)
        np.testing.assert_array_equal(got, EXPECTED, err_msg=name)
        assert sys.getrefcount(same) == references, "the deleter must have run once"


@pytest.mark.parametrize("versioned", [False, True])
def test_the_deleter_runs_when_the_argument_is_refused(versioned: bool) -> None:
    for refused in (X[0].copy(), X.astype(np.int32), np.full((2, 2), np.nan, np.float32)):
        references = sys.getrefcount(refused)
        with pytest.raises((TypeError, ValueError), match=r"^\[pairwise_distances\] "):
            ops.pairwise_distances(Exported(refused, versioned=versioned))
        assert sys.getrefcount(refused) == references


def test_in_place_through_dlpack_honours_read_only() -> None:
    W = X.copy()
    assert ops.wanda_prune_(Exported(W), None, 0.5) == 30
    assert int((W == 0).sum()) == 30
    W.flags.writeable = False
    with pytest.raises(ValueError, match=r"^\[wanda_prune_\] W must be writable"):
        ops.wanda_prune_(Exported(W), None, 0.9)
    assert int((W == 0).sum()) == 30


def test_other_devices_are_refused_before_the_export() -> None:
    class OnAnotherDevice:
        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

        def __dlpack__(self, **_: Any) -> Any:
            raise AssertionError("must not be called")

    with pytest.raises(
        ValueError, match=r"^\[pairwise_distances\] X must be in host memory, got DLPack device type 2"
    ):
        ops.pairwise_distances(OnAnotherDevice())


def test_errors_of_the_producer_come_through() -> None:
    class Broken(Exported):
        def __dlpack__(self, **_: Any) -> Any:
            raise BufferError("not now")

    class NoCapsule(Exported):
        def __dlpack__(self, **_: Any) -> Any:
            return 5

    with pytest.raises(BufferError, match="not now"):
        ops.pairwise_distances(Broken(X, versioned=False))
    with pytest.raises(TypeError, match=r"unused DLPack capsule"):
        ops.pairwise_distances(NoCapsule(X, versioned=False))


class DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class ManagedVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    )


class HandMade:
    """A versioned capsule written field by field, as a producer in C would."""

    def __init__(
        self, *, major: int = 1, code: int = 2, bits: int = 32, lanes: int = 1, device: int = 1
    ) -> None:
        self.memory = np.concatenate([np.zeros(4, np.float32), X.ravel()])
        self.shape = (ctypes.c_int64 * 2)(*X.shape)
        self.deleted = 0
        self.deleter = Deleter(self.count)
        tensor = DLTensor(
            self.memory.ctypes.data,
            device,
            0,
            2,
            code,
            bits,
            lanes,
            self.shape,
            None,
            16,  # null strides, an offset
        )
        self.managed = ManagedVersioned(major, 0, None, self.deleter, 0, tensor)

    def count(self, _: int) -> None:
        self.deleted += 1

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self, *, max_version: tuple[int, int]) -> Any:
        assert max_version[0] == 1
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        self.capsule = new(ctypes.addressof(self.managed), b"dltensor_versioned", None)
        return self.capsule


def test_null_strides_and_offset() -> None:
    producer = HandMade()
    np.testing.assert_array_equal(ops.pairwise_distances(producer), EXPECTED)
    assert producer.deleted == 1
    assert '"used_dltensor_versioned"' in repr(producer.capsule)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"major": 2}, ValueError, r"must be exported as DLPack 1, got version 2"),
        ({"code": 5, "bits": 64}, TypeError, r"must have dtype .*got DLPack type 5:64"),
        ({"bits": 16, "lanes": 2}, TypeError, r"must have dtype .*got float16x2"),
        ({"device": 4}, ValueError, r"must be in host memory, got DLPack device type 4"),
    ],
)
def test_capsules_that_cannot_be_read(fields: dict[str, int], error: type[Exception], message: str) -> None:
    producer = HandMade(**fields)
    with pytest.raises(error, match=rf"^\[pairwise_distances\] X {message}"):
        ops.pairwise_distances(producer)
    assert producer.deleted == 1


def test_a_capsule_is_used_once() -> None:
    producer = HandMade()
    capsule = producer.__dlpack__(max_version=(1, 0))
    producer.__dlpack__ = lambda **_: capsule  # type: ignore[method-assign]
    ops.pairwise_distances(producer)
    with pytest.raises(TypeError, match=r"unused DLPack capsule"):
        ops.pairwise_distances(producer)
    assert producer.deleted == 1

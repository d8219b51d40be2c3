# SPDX-License-Identifier: Apache-2.0
"""What the operations share: kinds of arrays, in and out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

ArrayT = TypeVar("ArrayT", npt.NDArray[Any], "torch.Tensor")
Array: TypeAlias = "npt.NDArray[Any] | torch.Tensor"
BitsName: TypeAlias = Literal["bfloat16"]


def is_tensor(array: object) -> bool:
    """Whether this is a torch tensor, without importing torch: who has a tensor has imported it."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(array, tensor)


def to_host(operation: str, name: str, array: Any) -> Any:
    """The array as the core reads it: a tensor detached and in host memory, anything else as it is."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"[{operation}] {name} must be a plain array, got a masked one (its mask would be ignored)"
        )
    if not is_tensor(array):
        return array
    if array.is_meta:
        raise ValueError(f"[{operation}] {name} must hold values, got a tensor on the meta device")
    return array.detach().cpu()


def checked_limit(operation: str, memory_limit: int | None) -> int:
    """The limit in bytes; 0 for none."""
    if memory_limit is None:
        return 0
    if memory_limit < 1:
        raise ValueError(f"[{operation}] memory_limit must be a positive number of bytes, got {memory_limit}")
    return int(memory_limit)


def host_norms(operation: str, input_sq_norm: Any) -> Any:
    """`to_host` of squared norms, or None for magnitude."""
    return None if input_sq_norm is None else to_host(operation, "input_sq_norm", input_sq_norm)


def share_or_counts(operation: str, sparsity: Any) -> float | npt.NDArray[np.int64]:
    """A share as float, or counts per row as int64."""
    if isinstance(sparsity, Real) and not isinstance(sparsity, bool):
        return float(sparsity)
    if isinstance(sparsity, np.ndarray) or is_tensor(sparsity):
        counts = np.asarray(to_host(operation, "sparsity", sparsity))
        if counts.dtype.kind in "iu":
            return counts.astype(np.int64, copy=False)
        found = f"an array of {counts.dtype}"
    else:
        found = type(sparsity).__name__
    raise TypeError(
        f"[{operation}] sparsity must be a number in [0, 1) or an integer array of counts, got {found}"
    )


def like(reference: ArrayT, array: Any) -> ArrayT:
    """A result of the core as the kind, and on the device, of `reference`."""
    if is_tensor(reference):
        if not is_tensor(array):
            array = sys.modules["torch"].from_numpy(array)
        array = array.to(reference.device)
    result: ArrayT = array
    return result


def new_like(tokens: Any, rows: int) -> Any:
    """An uninitialised [M, rows] of the kind and dtype of `tokens`, whose rank the core checks."""
    n_tokens = tokens.shape[0] if getattr(tokens, "ndim", 0) == 2 else 0
    if is_tensor(tokens):
        return tokens.new_empty((n_tokens, rows))
    return np.empty((n_tokens, rows), getattr(tokens, "dtype", np.float32))


def into(operation: str, reference: ArrayT, out: ArrayT | None, write: Callable[[Any], Any]) -> ArrayT:
    """The result of `write(out)`: `out`, or, where that is None, a new array like `reference`."""
    if out is None:
        return like(reference, write(None))
    host = to_host(operation, "out", out)
    write(host)
    write_back(out, host)
    return out


def write_back(target: Any, host: Any) -> None:
    """Copies an in-place result to the device it came from; on the CPU `host` is the target's own memory."""
    if is_tensor(target) and target.device.type != "cpu":
        target.detach().copy_(host)

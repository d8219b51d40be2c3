# SPDX-License-Identifier: Apache-2.0
"""Masks of CUDA tensors, on their device."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from stun_ext import _core
from stun_ext.ops._arrays import BitsName, is_tensor, share_or_counts

if TYPE_CHECKING:
    import torch


class OnGpu:
    """A matrix in the memory of a CUDA device, and where the core reports what it finds there."""

    def __init__(self, W: torch.Tensor, norms: torch.Tensor | None) -> None:
        self.torch = sys.modules["torch"]
        self.W = W
        self.norms = norms
        self.each = 0
        self.counts: torch.Tensor | None = None

    def mask(self, out: Any) -> Any:
        """`out`, or a new mask for None; None where `out` is not what the library writes into."""
        if out is None:
            return self.torch.empty(self.W.shape, dtype=self.torch.bool, device=self.W.device)
        is_usual = is_tensor(out) and out.device == self.W.device and out.dtype == self.torch.bool
        return out.detach() if is_usual and out.shape == self.W.shape and out.is_contiguous() else None

    def run(self, operation: str, function: Callable[..., None], *arguments: Any) -> int:
        """Queues on torch's current stream, waits, raises what was found, and returns the zeros."""
        status = self.torch.zeros(4, dtype=self.torch.int64, device=self.W.device)
        addresses = [argument.data_ptr() if is_tensor(argument) else argument or 0 for argument in arguments]
        stream = self.torch.cuda.current_stream(self.W.device).cuda_stream
        function(self.W, *addresses, status.data_ptr(), stream)
        found = status.tolist()
        if any(found[1:]):
            name = "scores" if operation == "nm_mask" else "weight"
            rows, cols = self.W.shape
            _core.cuda_throw_if_illegal(operation, name, found, rows, cols, operation == "nm_mask")
        return int(found[0])

    def run_in_place(self, operation: str, function: Callable[..., None], *arguments: Any) -> int:
        W = self.W
        if W.stride(0) != 1 or W.stride(1) < W.shape[0] or W.shape[1] == 1:
            return self.run(operation, function, *arguments)
        self.W = W.contiguous()  # a transposed matrix: two copies cost less than reading across it
        try:
            return self.run(operation, function, *arguments)
        finally:
            W.copy_(self.W)


@functools.cache
def has_cuda() -> bool:
    """Whether the library was built with CUDA and finds a device; asked for CUDA tensors alone."""
    return bool(_core.cuda_device_count() > 0)


def on_gpu(W: Any, input_sq_norm: Any, dtype: BitsName | None) -> OnGpu | None:
    """The arguments as the CUDA library takes them, or None: what is unusual or wrong is the host's to judge."""
    if dtype is not None or not is_tensor(W) or not W.is_cuda or not has_cuda():
        return None
    torch = sys.modules["torch"]
    if W.dtype not in (torch.float32, torch.float16, torch.bfloat16) or W.dim() != 2 or W.is_neg():
        return None
    norms = None
    if input_sq_norm is not None:
        floats = (torch.float32, torch.float64)
        is_usual = is_tensor(input_sq_norm) and input_sq_norm.dtype in floats and input_sq_norm.dim() == 1
        if not is_usual or input_sq_norm.shape[0] != W.shape[1] or W.shape[1] == 0:
            return None
        norms = input_sq_norm.detach().to(W.device, torch.float32).contiguous()
    return OnGpu(W.detach(), norms)


def wanda_on_gpu(W: Any, input_sq_norm: Any, sparsity: Any, dtype: BitsName | None) -> OnGpu | None:
    """As `on_gpu`, with the counts to prune."""
    gpu = on_gpu(W, input_sq_norm, dtype)
    if gpu is None or gpu.W.shape[1] > _core.CUDA_MOST_COLUMNS:
        return None
    amount = share_or_counts("wanda_mask", sparsity)
    if isinstance(amount, float):
        if not 0 <= amount < 1:
            return None
        gpu.each = int(gpu.W.shape[1] * amount)
    elif amount.shape == gpu.W.shape[:1]:
        gpu.counts = gpu.torch.from_numpy(np.ascontiguousarray(amount)).to(gpu.W.device)
    else:
        return None
    return gpu

# SPDX-License-Identifier: Apache-2.0
"""Masks of CUDA tensors: the same functions, against the same functions on the host. Skipped without a GPU."""

import numpy as np
import pytest
import torch

from stun_ext import ops

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or ops.build_info()["cuda_devices"] == 0,
    reason="needs a CUDA device, and a stun_ext that was built with CUDA",
)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def weights(rows: int, cols: int, dtype: torch.dtype, layout: str = "plain") -> torch.Tensor:
    torch.manual_seed(rows * cols)
    if layout == "transposed":
        return torch.randn(cols, rows, device="cuda").to(dtype).T
    if layout == "shifted":
        return torch.randn(rows, cols + 3, device="cuda").to(dtype)[:, 1 : cols + 1]
    return torch.randn(rows, cols, device="cuda").to(dtype)


@pytest.mark.parametrize("layout", ["plain", "transposed", "shifted"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_wanda_is_the_hosts(dtype: torch.dtype, layout: str) -> None:
    W = weights(70, 1000, dtype, layout)
    norms = torch.rand(1000, device="cuda") * 10
    counts = np.arange(70) * 14
    for sparsity in (0.0, 0.5, 0.65, counts, torch.from_numpy(counts)):
        mask = ops.wanda_mask(W, norms, sparsity)
        assert mask.is_cuda
        assert torch.equal(mask.cpu(), ops.wanda_mask(W.cpu(), norms.cpu(), sparsity))
        pruned, host = W.clone(memory_format=torch.preserve_format), W.cpu()
        assert ops.wanda_prune_(pruned, norms, sparsity) == ops.wanda_prune_(host, norms.cpu(), sparsity)
        assert torch.equal(pruned.cpu(), host)
    assert torch.equal(ops.wanda_mask(W, None, 0.5).cpu(), ops.wanda_mask(W.cpu(), None, 0.5))


@pytest.mark.parametrize("layout", ["plain", "transposed", "shifted"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nm_is_the_hosts(dtype: torch.dtype, layout: str) -> None:
    W = weights(70, 480, dtype, layout)
    norms = torch.rand(480, device="cuda") * 10
    for n, m in ((2, 4), (4, 8), (1, 2), (9, 16), (2, 3)):
        assert torch.equal(ops.nm_mask(W, n, m).cpu(), ops.nm_mask(W.cpu(), n, m))
        pruned, host = W.clone(memory_format=torch.preserve_format), W.cpu()
        assert ops.nm_prune_(pruned, norms, n, m) == ops.nm_prune_(host, norms.cpu(), n, m)
        assert torch.equal(pruned.cpu(), host)


def test_parameters_and_expert_slices_are_pruned_where_they_lie() -> None:
    experts = torch.nn.Parameter(torch.randn(4, 64, 128, device="cuda").bfloat16())
    before = experts.detach().clone()
    assert ops.wanda_prune_(experts[2], None, 0.5) == 64 * 64
    assert int((experts[2] == 0).sum()) == 64 * 64
    assert ops.wanda_prune_(experts[3].T, None, 0.25) == 128 * 16
    assert torch.equal(experts[:2], before[:2])


def test_runs_on_the_current_stream() -> None:
    stream = torch.cuda.Stream()
    W = torch.zeros(2048, 4096, device="cuda", dtype=torch.bfloat16)
    expected = torch.randn(2048, 4096, device="cuda").bfloat16()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(20):
            W.copy_(expected * 1.0)  # still under way when the mask is queued
        mask = ops.wanda_mask(W, None, 0.5)
    assert torch.equal(mask.cpu(), ops.wanda_mask(expected.cpu(), None, 0.5))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_refuses_nan_and_inf_and_leaves_their_rows(bad: float) -> None:
    W = weights(40, 300, torch.bfloat16)
    W[7, 11] = bad
    before = W.clone()
    with pytest.raises(ValueError, match=r"^\[wanda_prune_?\] weight must be finite.* row 7, column 11"):
        ops.wanda_prune_(W, None, 0.5)
    assert torch.equal(W[7].view(torch.int16), before[7].view(torch.int16))
    assert int((W[8] == 0).sum()) == 150
    with pytest.raises(ValueError, match=r"^\[wanda_mask\] weight must be finite.* row 7, column 11"):
        ops.wanda_mask(before, None, 0.5)
    norms = torch.ones(300, device="cuda")
    norms[3] = -1
    with pytest.raises(ValueError, match=r"^\[nm_prune_?\] input_sq_norm must be finite.* feature 3"):
        ops.nm_prune_(weights(40, 300, torch.bfloat16), norms, 2, 4)


def test_wrong_arguments_are_refused_as_on_the_host() -> None:
    W = weights(8, 40, torch.float32)
    for call in (
        lambda W: ops.wanda_mask(W, torch.ones(39).to(W.device), 0.5),
        lambda W: ops.wanda_mask(W, None, 1.0),
        lambda W: ops.wanda_mask(W, None, np.array([1, 2])),
        lambda W: ops.wanda_mask(W, None, np.full(8, 41)),
        lambda W: ops.nm_mask(W, 2, 3),
        lambda W: ops.nm_prune_(W, None, 4, 4),
        lambda W: ops.wanda_prune_(W[:1].expand(8, 40), None, 0.5),
        lambda W: ops.wanda_mask(W[0], None, 0.5),
        lambda W: ops.wanda_mask(W.double(), None, 0.5),
    ):
        with pytest.raises((ValueError, TypeError)) as on_gpu:
            call(W)
        with pytest.raises((ValueError, TypeError)) as on_host:
            call(W.cpu())
        assert on_gpu.type is on_host.type


def test_takes_rows_wider_than_the_library_by_the_host() -> None:
    W = weights(2, 40000, torch.bfloat16)
    assert torch.equal(ops.wanda_mask(W, None, 0.5).cpu(), ops.wanda_mask(W.cpu(), None, 0.5))

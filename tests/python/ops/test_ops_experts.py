# SPDX-License-Identifier: Apache-2.0
"""The expert block against torch in float64, on torch's threads and without them."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional

from stun_ext import ops

E, H, N = 5, 70, 40


def layer(dtype: torch.dtype = torch.bfloat16) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def pruned(rows: int, cols: int) -> torch.Tensor:
        weight = torch.randn(rows, cols, generator=generator).to(dtype)
        weight[torch.rand(rows, cols, generator=generator) < 0.5] = 0
        return weight

    return [pruned(2 * N, H) for _ in range(E)], [pruned(H, N) for _ in range(E)]


def routing(tokens: int, k: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    index = torch.stack([torch.randperm(E, generator=generator)[:k] for _ in range(tokens)])
    return index, torch.rand(tokens, k, generator=generator)


def reference(up, down, x, index, weights) -> torch.Tensor:
    result = torch.zeros(x.shape, dtype=torch.float64)
    for t in range(len(x)):
        for j in range(index.shape[1]):
            gate, linear = (up[index[t, j]].double() @ x[t].double()).chunk(2)
            result[t] += weights[t, j].double() * (
                down[index[t, j]].double() @ (functional.silu(gate) * linear)
            )
    return result


@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_block_is_torchs(tokens, dtype):
    up, down = layer()
    x = torch.randn(tokens, H, generator=torch.Generator().manual_seed(2)).to(dtype)
    index, weights = routing(tokens)
    packed = ops.Experts([ops.pack(w) for w in up], [ops.pack(w) for w in down])
    assert (packed.num_experts, packed.hidden_size, packed.intermediate_size) == (E, H, N)
    found = ops.expert_forward(x, index, weights, packed)
    assert found.dtype == dtype
    expected = reference(up, down, x, index, weights)
    scale = expected.abs().max()
    torch.testing.assert_close(
        found.double() / scale, expected / scale, rtol=0, atol=3 * torch.finfo(dtype).eps
    )


def test_numpy_and_bits():
    up, down = layer()
    bits = [ops.pack(w.view(torch.uint16).numpy(), dtype="bfloat16") for w in up]
    experts = ops.Experts(bits, [w.view(torch.uint16).numpy() for w in down], dtype="bfloat16")
    x = torch.randn(4, H).bfloat16()
    index, weights = routing(4)
    found = ops.expert_forward(
        x.view(torch.uint16).numpy(), index.numpy(), weights.numpy(), experts, dtype="bfloat16"
    )
    assert isinstance(found, np.ndarray)
    same = ops.expert_forward(x, index, weights, ops.Experts([ops.pack(w) for w in up], down))
    assert (torch.from_numpy(found) == same.view(torch.uint16)).all()


def test_weights_outlive_the_arrays_they_came_in():
    up, down = layer(torch.float32)
    index, weights = routing(2)
    x = torch.randn(2, H)
    expected = reference(up, down, x, index, weights)
    experts = ops.Experts([w.clone() for w in up], [w.clone() for w in down])
    _ = [torch.full((2 * N, H), torch.nan) for _ in range(2 * E)]
    torch.testing.assert_close(
        ops.expert_forward(x, index, weights, experts).double(), expected, rtol=1e-4, atol=1e-4
    )


def test_what_is_refused():
    up, down = layer()
    x = torch.randn(2, H).bfloat16()
    index, weights = routing(2)
    experts = ops.Experts(up, down)
    with pytest.raises(ValueError, match=r"\[Experts\] activation must be .* got \"swish\""):
        ops.Experts(up, down, activation="swish")
    with pytest.raises(ValueError, match=r"\[Experts\] down must have as many experts as up, 5, got 4"):
        ops.Experts(up, down[1:])
    with pytest.raises(ValueError, match=r"\[expert_forward\] x must be \[tokens, 70\], got \[2, 69\]"):
        ops.expert_forward(x[:, 1:], index, weights, experts)
    with pytest.raises(TypeError, match=r"\[expert_forward\] top_k_index"):
        ops.expert_forward(x, index.int(), weights, experts)
    with pytest.raises(ValueError, match=r"\[expert_forward\] top_k_weights must be \[2, 2\], got \[1, 2\]"):
        ops.expert_forward(x, index, weights[:1], experts)


def _products() -> torch.Tensor:
    up, _ = layer()
    big = torch.cat(up * 8)
    return ops.packed_matmul(torch.ones(3, H).bfloat16(), ops.pack(big))


def _in_child(queue) -> None:
    queue.put(_products().float().numpy())


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_forked_child_has_threads_of_its_own():
    torch.ones(1 << 20).sum()  # torch's threads run
    expected = _products().float().numpy()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    try:
        found = queue.get(timeout=60)
    finally:
        child.join(10)
        child.kill()
    assert (found == expected).all()


def test_without_torch():
    code = (
        "import sys, numpy as np; from stun_ext import ops; "
        "W = np.tril(np.ones((300, 300), np.float32)); "
        "y = ops.packed_matmul(np.ones((2, 300), np.float32), ops.pack(W)); "
        "assert (y[0] == np.arange(1, 301)).all() and 'torch' not in sys.modules; print('right')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.stdout.strip() == "right", run.stderr

# SPDX-License-Identifier: Apache-2.0
"""Masks of CUDA tensors by stun_ext.ops, beside the ways of torch; needs a GPU. Prints Markdown."""

import datetime
import platform
import statistics
from collections.abc import Callable

import torch

from stun_ext import ops

RUNS = 10
SHAPES = {
    "Arctic up": (4864, 7168),
    "Arctic down": (7168, 4864),
    "Mixtral-8x7B down": (4096, 14336),
    "Qwen3-30B-A3B up": (768, 2048),
}


def median_ms(restore: Callable[[], object], run: Callable[[], object]) -> float:
    times = []
    for i in range(RUNS + 2):
        restore()
        torch.cuda.synchronize()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        if i >= 2:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def scores(W: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    return W.abs().float() * norms.sqrt()


def by_sort(W: torch.Tensor, norms: torch.Tensor) -> None:
    """The released code's way, and exact: the sort is stable."""
    order = torch.sort(scores(W, norms), dim=1, stable=True).indices
    W.scatter_(1, order[:, : W.shape[1] // 2], 0)


def by_topk(W: torch.Tensor, norms: torch.Tensor) -> None:
    lowest = torch.topk(scores(W, norms), W.shape[1] // 2, dim=1, largest=False, sorted=False).indices
    W.scatter_(1, lowest, 0)


def by_kthvalue(W: torch.Tensor, norms: torch.Tensor) -> None:
    S = scores(W, norms)
    W.masked_fill_(torch.kthvalue(S, W.shape[1] // 2, dim=1, keepdim=True).values >= S, 0)


def nm_by_topk(W: torch.Tensor, norms: torch.Tensor) -> None:
    blocks = scores(W, norms).view(W.shape[0], -1, 4)
    lowest = torch.topk(blocks, 2, dim=2, largest=False, sorted=False).indices
    W.view(blocks.shape).scatter_(2, lowest, 0)


def main() -> None:
    print(f"- {torch.cuda.get_device_name()}; torch {torch.__version__}, Python {platform.python_version()}")
    print(f"- {datetime.date.today().isoformat()}, medians of {RUNS} runs, weights restored before each\n")
    print("| bfloat16 weights | way | ms | GB/s of weights |\n|---|---|---|---|")
    for label, (rows, cols) in SHAPES.items():
        torch.manual_seed(0)
        fresh = (torch.randn(rows, cols, device="cuda") * 0.02).bfloat16()
        W, norms = fresh.clone(), torch.rand(cols, device="cuda") * 100
        by_sort(W, norms)
        expected = W.clone()
        W.copy_(fresh)
        assert ops.wanda_prune_(W, norms, 0.5) == int((W == 0).sum())
        assert torch.equal(W, expected), "the stable sort decides otherwise"
        transposed = fresh.T.contiguous().T
        ways: dict[str, Callable[[], object]] = {
            "torch copy_": lambda W=W, F=fresh: W.copy_(F),
            "stun_ext.ops.wanda_prune_": lambda W=W, x=norms: ops.wanda_prune_(W, x, 0.5),
            "stun_ext.ops.wanda_prune_, transposed": lambda W=transposed, x=norms: ops.wanda_prune_(
                W, x, 0.5
            ),
            "stun_ext.ops.wanda_mask": lambda W=W, x=norms: ops.wanda_mask(W, x, 0.5),
            "stun_ext.ops.nm_prune_ 2:4": lambda W=W, x=norms: ops.nm_prune_(W, x, 2, 4),
            "torch stable sort": lambda W=W, x=norms: by_sort(W, x),
            "torch topk": lambda W=W, x=norms: by_topk(W, x),
            "torch kthvalue": lambda W=W, x=norms: by_kthvalue(W, x),
            "torch topk 2:4": lambda W=W, x=norms: nm_by_topk(W, x),
        }
        for way, run in ways.items():

            def restore(W: torch.Tensor = W, T: torch.Tensor = transposed, F: torch.Tensor = fresh) -> None:
                W.copy_(F)
                T.copy_(F)

            ms = median_ms(restore, run)
            print(f"| {label}, {rows} × {cols} | {way} | {ms:.3f} | {fresh.numel() * 2 / ms / 1e6:.0f} |")


if __name__ == "__main__":
    main()

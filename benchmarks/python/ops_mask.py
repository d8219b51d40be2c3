# SPDX-License-Identifier: Apache-2.0
"""Wanda masks of bfloat16 expert weights at 50%: ours, and torch by sort, topk and kthvalue; 2:4 by topk."""

import torch
from ops_common import measure, table

from stun_ext import ops

NOTE = """G weights/s by the median, and milliseconds (interquartile range). The sort is the released code's
way (stable, so exact on ties); topk and kthvalue are faster torch ways, whose masks differ on ties. "prune in
place" writes the zeros; the others make a mask (torch: and its scores)."""


def scores_of(W: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    return W.abs().float() * norms.sqrt()


def by_sort(W: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    order = torch.sort(scores_of(W, norms), dim=1, stable=True).indices
    return torch.ones_like(W, dtype=torch.bool).scatter_(1, order[:, : W.shape[1] // 2], False)


def by_topk(W: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    lowest = torch.topk(scores_of(W, norms), W.shape[1] // 2, dim=1, largest=False, sorted=False).indices
    return torch.ones_like(W, dtype=torch.bool).scatter_(1, lowest, False)


def by_kthvalue(W: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    scores = scores_of(W, norms)
    return scores > torch.kthvalue(scores, W.shape[1] // 2, dim=1, keepdim=True).values


def nm_by_topk(S: torch.Tensor) -> torch.Tensor:
    blocks = S.view(S.shape[0], -1, 4)
    lowest = torch.topk(blocks, 2, dim=2, largest=False, sorted=False).indices
    return torch.ones_like(blocks, dtype=torch.bool).scatter_(2, lowest, False).view(S.shape)


def main() -> None:
    rows = []
    for label, shape in [("Qwen3-30B-A3B up", (768, 2048)), ("Mixtral-8x7B down", (4096, 14336))]:
        torch.manual_seed(0)
        W = torch.randn(shape).bfloat16()
        norms = torch.rand(shape[1]) * 100
        exact = ops.wanda_mask(W, norms, 0.5)
        differing = int((by_sort(W, norms) != exact).sum())
        stored = W.T.contiguous().T  # as a transposed expert lies in memory
        target = W.clone()
        times = measure(
            {
                "stun_ext wanda_mask": lambda W=W, x=norms: ops.wanda_mask(W, x, 0.5),
                "stun_ext wanda_mask, transposed": lambda W=stored, x=norms: ops.wanda_mask(W, x, 0.5),
                "stun_ext prune in place (and restore W)": lambda W=W, t=target, x=norms: ops.wanda_prune_(
                    t.copy_(W), x, 0.5
                ),
                "torch stable sort": lambda W=W, x=norms: by_sort(W, x),
                "torch topk": lambda W=W, x=norms: by_topk(W, x),
                "torch kthvalue": lambda W=W, x=norms: by_kthvalue(W, x),
                "stun_ext nm_mask 2:4": lambda W=W: ops.nm_mask(W, 2, 4),
                "torch topk 2:4": lambda W=W: nm_by_topk(W),
            }
        )
        size = f"{label}, {shape[0]} × {shape[1]}"
        for name, (median, spread) in times.items():
            note = f"; {differing} of {W.numel()} differ" if name == "torch stable sort" else ""
            rows.append(
                [
                    size,
                    name,
                    f"{W.numel() / median / 1e9:.3f}",
                    f"{median * 1e3:.3g} ({spread * 1e3:.2g}){note}",
                ]
            )
    table("Wanda masks", NOTE, ["weights", "candidate", "G weights/s", "ms"], rows)


if __name__ == "__main__":
    main()

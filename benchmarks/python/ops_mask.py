# SPDX-License-Identifier: Apache-2.0
"""Wanda and n:m masks of bfloat16 expert weights: ours at one instruction set, torch by sort, topk, kthvalue.

STUN_EXT_ISA=avx2 or scalar forces ours; --no-baselines leaves torch out.
"""

import torch
from ops_common import OPTIONS, measure, table

from stun_ext import ops

NOTE = """G weights/s and GB/s of weights (2 bytes each) by the median, and milliseconds (interquartile range), for all
threads together. The sort is the released code's way (stable, so exact on ties); topk and kthvalue are faster torch
ways, whose masks differ on ties. "out=" reuses the mask; the others get a new one, whose memory the system clears.
What prunes in place is timed on a fresh copy of W, and the time of a copy, measured in the same run, is taken off.
"read" is torch summing the same bytes as int64, "copy" is copy_ to another tensor: the memory's rates."""

SHAPES = [
    ("Qwen3-30B-A3B up", (768, 2048)),
    ("Arctic down", (4864, 7168)),
    ("Mixtral-8x7B down", (4096, 14336)),
]


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
    isa = ops.cpu_info()["isa"]
    rows = []
    for label, shape in SHAPES:
        torch.manual_seed(0)
        W = torch.randn(shape).bfloat16()
        norms = torch.rand(shape[1]) * 100
        stored = W.T.contiguous().T  # as a transposed expert lies in memory
        other, other_stored = W.clone(), stored.clone()
        mask = torch.zeros(shape, dtype=torch.bool)
        ours = {
            "wanda_mask": lambda W=W, x=norms: ops.wanda_mask(W, x, 0.5),
            "wanda_mask, out=": lambda W=W, x=norms, o=mask: ops.wanda_mask(W, x, 0.5, out=o),
            "wanda_mask, out=, transposed": lambda W=stored, x=norms, o=mask: ops.wanda_mask(
                W, x, 0.5, out=o
            ),
            "nm_mask 2:4": lambda W=W: ops.nm_mask(W, 2, 4),
            "nm_mask 2:4, out=": lambda W=W, o=mask: ops.nm_mask(W, 2, 4, out=o),
            "nm_mask 4:8, out=": lambda W=W, o=mask: ops.nm_mask(W, 4, 8, out=o),
            "nm_mask 2:4, out=, transposed": lambda W=stored, o=mask: ops.nm_mask(W, 2, 4, out=o),
            "wanda_prune_": lambda W=W, t=other, x=norms: ops.wanda_prune_(t.copy_(W), x, 0.5),
            "wanda_prune_, transposed": lambda W=stored, t=other_stored, x=norms: ops.wanda_prune_(
                t.copy_(W), x, 0.5
            ),
            "nm_prune_ 2:4": lambda W=W, t=other, x=norms: ops.nm_prune_(t.copy_(W), x, 2, 4),
        }
        candidates = {f"stun_ext {isa} {name}": call for name, call in ours.items()}
        candidates["torch copy"] = lambda W=W, t=other: t.copy_(W)
        if OPTIONS.baselines:
            candidates |= {
                "torch read": lambda W=W: W.view(torch.int64).sum(),
                "torch topk": lambda W=W, x=norms: by_topk(W, x),
                "torch kthvalue": lambda W=W, x=norms: by_kthvalue(W, x),
                "torch stable sort": lambda W=W, x=norms: by_sort(W, x),
                "torch topk 2:4": lambda W=W: nm_by_topk(W),
            }
            differing = int((by_sort(W, norms) != ops.wanda_mask(W, norms, 0.5)).sum())
        measured = measure(candidates)
        for name, (median, spread) in measured.items():
            note = f"; {differing} of {W.numel()} differ" if name == "torch stable sort" else ""
            if "prune_" in name:
                median -= measured["torch copy"][0]
            rate = W.numel() / median / 1e9
            times = f"{median * 1e3:.3g} ({spread * 1e3:.2g}){note}"
            rows.append([f"{label}, {shape[0]} × {shape[1]}", name, f"{rate:.3f}", f"{2 * rate:.2f}", times])
    table("Wanda and n:m masks", NOTE, ["weights", "candidate", "G weights/s", "GB/s", "ms"], rows)


if __name__ == "__main__":
    main()

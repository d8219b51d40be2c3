# SPDX-License-Identifier: Apache-2.0
"""Products with packed bfloat16 weights: ours packed and dense, and torch.nn.functional.linear, in one run.

STUN_EXT_ISA=avx2 or scalar forces ours; --no-baselines leaves torch out, --sizes 1 16 takes these numbers of tokens.
"""

import itertools
import os
from collections.abc import Callable

os.environ.setdefault("KMP_BLOCKTIME", "0")  # torch's threads must not spin while ours are measured
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from ops_common import OPTIONS, measure, table

from stun_ext import ops

NOTE = """W is 14336 × 4096, bfloat16, 117 MB dense, x bfloat16. Milliseconds: median (interquartile range). GB/s:
bytes of W as it is stored, by the median. Candidates are interleaved and each has two copies of its weights, in turn,
so that none finds them in a cache. All memory is in pages of 4 KB, as torch allocates and files are mapped, while
`ops.pack` asks for huge ones. "read" is torch summing dense weights as int64: a plain read."""

ROWS, COLS = 14336, 4096
SPARSITIES = [0.4, 0.5, 0.6, 0.65, 0.7]
TOKENS = [1, 4, 16, 64]


def weights(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A dense weight, and which share of the others goes before an element does."""
    generator = torch.Generator().manual_seed(seed)
    shape = (ROWS, COLS)
    return torch.randn(shape, generator=generator).bfloat16(), torch.rand(shape, generator=generator)


def packed_in_small_pages(W: torch.Tensor) -> ops.PackedMatrix:
    """In memory as torch allocates it, where `ops.pack` would ask for huge pages."""
    packed = ops.pack(W)
    values, masks = torch.tensor(packed.values), torch.tensor(packed.masks.view("int32"))
    return ops.packed_from_buffers(packed.shape, packed.dtype, values.numpy(), masks.numpy().view("uint32"))


def main() -> None:
    isa = ops.cpu_info()["isa"]
    made = [weights(seed) for seed in (0, 1)]
    dense = [W for W, _ in made]
    packed = {
        s: [packed_in_small_pages(W.masked_fill(order < s, 0)) for W, order in made] for s in SPARSITIES
    }
    bytes_of = {f"packed {s:.0%}": packed[s][0].nbytes for s in SPARSITIES}
    rows = []
    for tokens in OPTIONS.sizes or TOKENS:
        x = torch.randn(tokens, COLS).bfloat16()
        candidates: dict[str, Callable[[], object]] = {}

        def add(name: str, weights: list, call: Callable, candidates: dict = candidates) -> None:
            turn = itertools.cycle(weights)
            candidates[name] = lambda: call(next(turn))

        if OPTIONS.baselines:
            add("read", dense, lambda W: W.view(torch.int64).sum())
            add("torch linear", dense, lambda W, x=x: torch.nn.functional.linear(x, W))
        add("dense", dense, lambda W, x=x: ops.dense_matmul(x, W))
        for s in SPARSITIES:
            add(f"packed {s:.0%}", packed[s], lambda P, x=x: ops.packed_matmul(x, P))
        measured = measure(candidates)
        ours = measured["dense"][0]
        torchs = measured["torch linear"][0] if OPTIONS.baselines else float("nan")
        for name, (median, spread) in measured.items():
            rate = bytes_of.get(name, 2 * ROWS * COLS) / median / 1e9
            label = name if name in ("read", "torch linear") else f"stun_ext {isa} {name}"
            ratios = ["", ""] if name == "read" else [f"{ours / median:.2f}", f"{torchs / median:.2f}"]
            times = f"{median * 1e3:.2f} ({spread * 1e3:.2f})"
            rows.append([str(tokens), label, times, f"{rate:.1f}", *ratios])
    table("Packed products", NOTE, ["M", "candidate", "ms", "GB/s", "× dense", "× torch"], rows)


if __name__ == "__main__":
    with torch.inference_mode():
        main()

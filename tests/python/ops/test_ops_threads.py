# SPDX-License-Identifier: Apache-2.0
"""The GIL is released, results do not depend on the number of threads, calls may overlap; and no copies."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import ops_reference as ref
import pytest

from stun_ext import ops


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    before = ops.num_threads()
    yield
    ops.set_num_threads(before)


@cache
def workloads() -> dict[str, Callable[[], Any]]:
    """Every op on inputs that keep it busy for some milliseconds."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((400, 600)).astype(np.float32)
    counts = rng.integers(0, 9, (1500, 1500)).astype(np.float64)
    counts = np.triu(counts, 1) + np.triu(counts, 1).T
    D = ops.pairwise_distances(rows)
    n = 200_000
    chain = np.stack(
        [np.r_[0, n + np.arange(n - 2)], np.arange(1, n), np.arange(1.0, n), np.arange(2, n + 1)], axis=1
    )
    chain[1:, :2] = np.sort(chain[1:, :2], axis=1)
    W = rng.standard_normal((1000, 2000)).astype(np.float32)
    norms = rng.random(2000).astype(np.float32)
    mask = rng.random(W.shape) < 0.5
    target = W.copy()
    packed, tokens = ops.pack(W * mask), W[:300]
    halves = [W[:500], W[500:]]
    experts = ops.Experts(halves, [half.T.copy() for half in halves], is_gated=False)
    ids = np.arange(600).reshape(300, 2) % 3
    return {
        "pairwise_distances": lambda: ops.pairwise_distances(rows),
        "coactivation_distances": lambda: ops.coactivation_distances(counts),
        "mixed_distances": lambda: ops.mixed_distances(rows, counts[:400, :400], 0.3),
        "star_clusters": lambda: ops.star_clusters(D, 40.0),
        "star_clusters_count": lambda: ops.star_clusters_count(D, 100),
        "star_clusters_rows": lambda: ops.star_clusters_rows(rows, 30.0),
        "linkage": lambda: ops.linkage(rows, "average"),
        "cut_tree": lambda: ops.cut_tree(chain, n_clusters=1000),
        "allocate_experts": lambda: ops.allocate_experts([D[:200, :200], D[200:, 200:]], 150),
        "wanda_scores": lambda: ops.wanda_scores(W, norms),
        "wanda_mask": lambda: ops.wanda_mask(W, norms, 0.5),
        "wanda_prune_": lambda: ops.wanda_prune_(target, norms, 0.5),
        "nm_mask": lambda: ops.nm_mask(W, 2, 4),
        "nm_prune_": lambda: ops.nm_prune_(target, norms, 2, 4),
        "apply_mask_": lambda: ops.apply_mask_(target, mask),
        "pack": lambda: ops.pack(W).values,
        "packed_from_buffers": lambda: (
            ops.packed_from_buffers(W.shape, "float32", packed.values, packed.masks).values
        ),
        "unpack": lambda: ops.unpack(packed, target),
        "packed_matmul": lambda: ops.packed_matmul(tokens, packed),
        "dense_matmul": lambda: ops.dense_matmul(tokens, W),
        "expert_forward": lambda: ops.expert_forward(W[:300], ids, norms[:600].reshape(300, 2), experts),
    }


OPS = [
    name
    for name in ops.__all__
    if name
    not in {
        "Allocation",
        "Experts",
        "PackedMatrix",
        "build_info",
        "cpu_info",
        "num_threads",
        "set_num_threads",
    }
]


def test_workloads_cover_every_op() -> None:
    assert sorted(workloads()) == sorted(OPS)


@pytest.mark.parametrize("name", OPS)
def test_the_gil_is_released(name: str) -> None:
    call = workloads()[name]
    running = seen = False
    deadline = time.monotonic() + 10

    def work() -> None:
        nonlocal running
        while not seen and time.monotonic() < deadline:
            running = True
            call()
            running = False

    # With this interval Python never takes the GIL away from a thread: another one gets it only where it is
    # given up. So if this thread sees `running`, the op gave it up. (The worker gives it up nowhere else.)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        worker = threading.Thread(target=work)
        worker.start()
        while worker.is_alive() and not seen:
            time.sleep(0.0005)
            seen = running
        worker.join()
    finally:
        sys.setswitchinterval(interval)
    assert seen


def same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return all(same(x, y) for x, y in zip(a, b, strict=True))
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


@pytest.mark.parametrize("name", [n for n in OPS if not n.endswith("_")])
def test_threads_do_not_change_a_bit(name: str) -> None:
    call = workloads()[name]
    ops.set_num_threads(1)
    expected = call()
    for threads in (2, 3, 7):
        ops.set_num_threads(threads)
        assert same(call(), expected), threads


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_threads_prune_the_same_weights(dtype: str) -> None:
    W = ref.weight(np.random.default_rng(1), (257, 129), dtype, ties=True)
    results = []
    for threads in (1, 2, 5):
        ops.set_num_threads(threads)
        pruned = W.clone()
        ops.wanda_prune_(pruned, None, 0.37)
        ops.apply_mask_(pruned, ops.nm_mask(pruned.abs()[:, :128], 3, 4).repeat(1, 2)[:, :129])
        results.append(ref.as_numpy(pruned).tobytes())
    assert results[0] == results[1] == results[2]


def test_calls_from_many_threads() -> None:
    names = [n for n in OPS if not n.endswith("_")]
    expected = {name: workloads()[name]() for name in names}
    with ThreadPoolExecutor(6) as pool:
        jobs = [(name, pool.submit(workloads()[name])) for _ in range(3) for name in names]
        for name, job in jobs:
            assert same(job.result(), expected[name]), name


def test_weights_pruned_from_many_threads() -> None:
    rng = np.random.default_rng(2)
    experts = rng.standard_normal((16, 64, 96)).astype(np.float32)
    expected = experts.copy()
    for expert in expected:
        ops.wanda_prune_(expert, None, 0.5)
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda expert: ops.wanda_prune_(expert, None, 0.5), experts)) == [3072] * 16
    np.testing.assert_array_equal(experts, expected)


def test_number_of_threads() -> None:
    ops.set_num_threads(3)
    assert ops.num_threads() == 3
    assert ops.build_info()["num_threads"] == 3
    for illegal in (0, -1):
        with pytest.raises(ValueError, match=rf"^\[set_num_threads\] .*got {illegal}"):
            ops.set_num_threads(illegal)
    assert ops.num_threads() == 3


def test_number_of_threads_from_the_environment() -> None:
    code = "from stun_ext import ops; print(ops.num_threads())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "STUN_EXT_NUM_THREADS": "5"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "5"


MEMORY = """
import resource, sys
import numpy as np
from stun_ext import ops

kind, layout = sys.argv[1:]
R, C = 6000, 8000  # 96 MB of bfloat16
shape = (C, R) if layout == "transposed" else (R, C)
bits = np.full(shape, 0x3F80, dtype=np.uint16)
bits[0] = 0
W, keyword = bits, {"dtype": "bfloat16"}
if kind == "torch":
    import torch
    W, keyword = torch.from_numpy(bits).view(torch.bfloat16), {}
W = W.T if layout == "transposed" else W
norms = np.ones(C, dtype=np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if layout == "read-only":
    bits.flags.writeable = False
    ops.wanda_mask(W[:10], norms, 0.5, **keyword)
    ops.pairwise_distances(W[:100, :4000], **keyword)
else:
    zeros = ops.wanda_prune_(W, norms, 0.5, **keyword)
    assert zeros == (bits == 0).sum(), zeros
    before += bits.size // 1024  # the comparison's own bytes
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux alone")
@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("numpy", "plain"),
        ("numpy", "transposed"),
        ("numpy", "read-only"),
        ("torch", "plain"),
        ("torch", "transposed"),
    ],
)
def test_matrices_are_not_copied(kind: str, layout: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, kind, layout], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 24 * 1024, "the input has 96 MB; its copy, or its mask of 48 MB, would show"

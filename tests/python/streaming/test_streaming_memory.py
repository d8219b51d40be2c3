# SPDX-License-Identifier: Apache-2.0
"""Private memory does not grow with the checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Files with holes for data: as large as asked, and written at once. The routers alone hold numbers.
_WRITE = """
import json, sys
import numpy as np
folder, layers, experts, hidden, inner = sys.argv[1], 2, 16, 1024, 2048
weight_map, total = {}, 0
for n in range(layers):
    entries, position = {}, 0
    at = f"model.layers.{n}.block_sparse_moe"
    names = [(f"{at}.gate.weight", (experts, hidden))]
    for e in range(experts):
        names += [(f"{at}.experts.{e}.{w}.weight", (inner, hidden)) for w in ("w1", "w2", "w3")]
    for name, shape in names:
        size = 2 * shape[0] * shape[1]
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    file = f"model-0000{n + 1}-of-00002.safetensors"
    with open(f"{folder}/{file}", "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        rows = np.random.default_rng(n).standard_normal((experts, hidden), dtype=np.float32)
        out.write((rows.view(np.uint32) >> 16).astype(np.uint16).tobytes())
        out.truncate(8 + len(text) + position)
    weight_map.update(dict.fromkeys(entries, file))
    total += position
json.dump({"metadata": {"total_size": total}, "weight_map": weight_map},
          open(f"{folder}/model.safetensors.index.json", "w"))
json.dump({"model_type": "arctic", "num_hidden_layers": layers, "hidden_size": hidden,
           "num_local_experts": experts, "num_experts_per_tok": 2}, open(f"{folder}/config.json", "w"))
"""

_PRUNE = """
import json, re, sys, threading, time
from stun_ext.streaming import prune_checkpoint

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10

before = anonymous()
peak, done = before, threading.Event()

def watch():
    global peak
    while not done.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.001)

watcher = threading.Thread(target=watch)
watcher.start()
found = {"before": before}
for representative in ("router", "nearest"):
    out = sys.argv[2] + representative
    found["bytes"] = prune_checkpoint(sys.argv[1], out, sparsity=0.75, representative=representative).bytes_before
    found[representative] = peak
# Zeros everywhere: what is zeroed does not matter, how much is in memory meanwhile does.
both = {"weight_method": "magnitude", "sparsity": 0.6, "expert_sparsity": 0.25, "representative": "router"}
for name, settings in {"zeroed": {}, "pattern": {"pattern": "2:4"}, "owl": {"weight_allocation": "owl"}}.items():
    peak = 0
    report = prune_checkpoint(sys.argv[1], sys.argv[2] + name, **both, **settings)
    assert report.zeros == report.parameters_after, report.zeros
    found[name] = peak
done.set()
watcher.join()
print(json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_private_memory_stays_small(tmp_path):
    (tmp_path / "in").mkdir()
    _python(_WRITE, tmp_path / "in")
    found = json.loads(_python(_PRUNE, tmp_path / "in", tmp_path / "out"))
    assert found["bytes"] > 400e6
    # A layer has 200 MB. Buffers and threads take some; "nearest" holds a few megabytes of its experts at a time.
    assert found["router"] - found["before"] < 32e6, found
    assert found["nearest"] - found["before"] < 100e6, found
    assert found["nearest"] < 1e9, found
    # Zeroing has chunks of 4 MB in work; OWL looks at the scores of one expert's matrix, 8 MB in float32.
    assert found["zeroed"] - found["before"] < 64e6, found
    assert found["pattern"] - found["before"] < 64e6, found
    assert found["owl"] - found["before"] < 100e6, found


def _python(code: str, *arguments: object) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "STUN_EXT_NUM_THREADS": "1",
        # glibc gives freed buffers back at once: else each run would be charged with what those before it freed.
        "MALLOC_MMAP_THRESHOLD_": "131072",
    }
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=240, env=environment
    ).stdout

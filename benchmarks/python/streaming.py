# SPDX-License-Identifier: Apache-2.0
"""Pruning a checkpoint from file to file, against copying it with ``cp``.

``streaming.py build FOLDER --layers 2`` writes a checkpoint in Mixtral's layout with random numbers; ``streaming.py run
FOLDER`` takes turns copying and pruning it, each with its files on the disk at the end (fsync) and the source out of
the page cache at the start (posix_fadvise, which needs no rights).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

HIDDEN, INNER, EXPERTS, VOCABULARY = 2048, 7168, 8, 32000


def layer_tensors(layer: int) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of one decoder layer of Mixtral, halved in width."""
    at = f"model.layers.{layer}"
    tensors = [
        (f"{at}.self_attn.{name}_proj.weight", (HIDDEN if name in "qo" else HIDDEN // 4, HIDDEN))
        for name in "qkvo"
    ]
    tensors += [(f"{at}.{name}_layernorm.weight", (HIDDEN,)) for name in ("input", "post_attention")]
    tensors.append((f"{at}.block_sparse_moe.gate.weight", (EXPERTS, HIDDEN)))
    for expert in range(EXPERTS):
        for name, shape in (("w1", (INNER, HIDDEN)), ("w2", (HIDDEN, INNER)), ("w3", (INNER, HIDDEN))):
            tensors.append((f"{at}.block_sparse_moe.experts.{expert}.{name}.weight", shape))
    return tensors


def build(folder: Path, layers: int) -> None:
    """Writes the checkpoint, one file a layer and one for the rest; every byte is written."""
    import numpy as np

    folder.mkdir(parents=True)
    rest = [("model.embed_tokens.weight", (VOCABULARY, HIDDEN)), ("model.norm.weight", (HIDDEN,)),
            ("lm_head.weight", (VOCABULARY, HIDDEN))]  # fmt: skip
    files = [rest, *(layer_tensors(layer) for layer in range(layers))]
    generator, weight_map, total = np.random.default_rng(0), {}, 0
    for number, tensors in enumerate(files):
        file = f"model-{number + 1:05}-of-{len(files):05}.safetensors"
        entries, position = {"__metadata__": {"format": "pt"}}, 0
        for name, shape in tensors:
            size = 2 * int(np.prod(shape))
            entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, position + size]}
            position += size
            weight_map[name] = file
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for _, shape in tensors:
                values = generator.standard_normal(int(np.prod(shape)), dtype=np.float32)
                out.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
            os.fsync(out.fileno())
        total += position
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 4,
        "num_local_experts": EXPERTS, "num_experts_per_tok": 2, "vocab_size": VOCABULARY, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def forget(folder: Path) -> None:
    """Drops a directory's files from the page cache."""
    for path in folder.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def copy(source: Path, out: Path) -> None:
    """``cp --reflink=never``, then every file to the disk."""
    subprocess.run(["cp", "-r", "--reflink=never", source, out], check=True)
    for path in out.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


class PeakAnonymous:
    """The most anonymous memory of this process while a block runs, above what it had; sampled every millisecond."""

    def __enter__(self) -> PeakAnonymous:
        self._before, self.bytes, self._done = self._now(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.001):
            self.bytes = max(self.bytes, self._now() - self._before)

    @staticmethod
    def _now() -> int:
        found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
        return int(found[1]) << 10 if found else 0


def run(folder: Path, repeats: int) -> None:
    """Takes turns and prints a table."""
    from stun_ext import prune_checkpoint

    out = folder.with_name(folder.name + "-out")
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    prunings = {
        "prune 25%, router": {"expert_sparsity": 0.25, "representative": "router"},
        "prune 25%, nearest": {"expert_sparsity": 0.25, "representative": "nearest"},
    }
    prune_checkpoint(folder, out, expert_sparsity=0.25, dry_run=True)  # imports
    seconds: dict[str, list[float]] = {"cp": [], **{name: [] for name in prunings}}
    written, peaks = {"cp": size}, {"cp": 0}
    for _ in range(repeats):
        for name in seconds:
            forget(folder)
            start = time.perf_counter()
            with PeakAnonymous() as peak:
                if name == "cp":
                    copy(folder, out)
                else:
                    prune_checkpoint(folder, out, **prunings[name])
            seconds[name].append(time.perf_counter() - start)
            print(f"{name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
            written[name] = sum(path.stat().st_size for path in out.glob("*.safetensors"))
            peaks[name] = max(peaks.get(name, 0), peak.bytes)
            forget(out)
            shutil.rmtree(out)
    base = statistics.median(seconds["cp"])
    print("| | written, GB | median s | least to most s | against cp | GB/s written | private memory, MB |")
    print("|---|---|---|---|---|---|---|")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(
            f"| {name} | {written[name] / 1e9:.2f} | {median:.2f} | {min(times):.2f} to {max(times):.2f} | "
            f"{median / base:.2f} | {written[name] / median / 1e9:.2f} | {peaks[name] / 1e6:.0f} |"
        )


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["build", "run"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.what == "build":
        build(arguments.folder, arguments.layers)
    else:
        run(arguments.folder, arguments.repeats)


if __name__ == "__main__":
    main()

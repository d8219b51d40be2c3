# SPDX-License-Identifier: Apache-2.0
"""Decoding with dense and with packed experts: a random model in the shape of Qwen3-30B-A3B's layers, in bfloat16.

Each layer has 1.2 GB of experts. What is measured is what ``stun-ext bench`` measures: greedy decoding of one sequence
by each of Transformers' experts implementations and by ours.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import sys

_parser = argparse.ArgumentParser()
_parser.add_argument("--threads", type=int, default=2, help="of torch and of the packed products (2)")
_parser.add_argument("--layers", type=int, default=2, help="1.2 GB of experts each (2)")
_parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.65])
_parser.add_argument(
    "--batch-sizes", type=int, nargs="+", default=[1, 4, 16], help="sequences at once (1 4 16)"
)
_parser.add_argument("--new-tokens", type=int, default=24)
OPTIONS = _parser.parse_args()
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "STUN_EXT_NUM_THREADS"):
    os.environ[_name] = str(OPTIONS.threads)

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM  # noqa: E402

from stun_ext.benchmark import bench  # noqa: E402


def random_model(layers: int, sparsity: float) -> Qwen3MoeForCausalLM:
    """Its expert weights are normal, zero where a random mask says so; parts of one long row of random numbers."""
    config = Qwen3MoeConfig(
        vocab_size=4096,
        hidden_size=2048,
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        norm_topk_prob=True,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model = Qwen3MoeForCausalLM(config)
    model = model.to_empty(device="cpu")
    torch.set_default_dtype(torch.float32)
    generator = torch.Generator().manual_seed(0)
    values = (torch.randn(1 << 22, generator=generator) * 0.02).bfloat16()
    is_kept = torch.rand(1 << 22, generator=generator) >= sparsity
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 3:
                for expert, matrix in enumerate(parameter):
                    size = matrix.numel()
                    kept = is_kept.roll(expert * 977)[:size]
                    matrix.copy_(values.roll(expert * 131 + 7)[:size].where(kept, 0).view(matrix.shape))
            elif "norm" in name:
                parameter.fill_(1)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    model.model.rotary_emb.__init__(config)  # its buffers were never computed
    return model.eval()


def main() -> None:
    """Prints a table."""
    torch.set_num_threads(OPTIONS.threads)
    command = shlex.join(["python", "decode.py", *sys.argv[1:]])
    print(f"- {OPTIONS.threads} threads; torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"- {datetime.date.today()}, `{command}`\n")
    print(
        "| sparsity | sequences | implementation | tokens/s | against the best dense | experts, GB |\n"
        "|---|---|---|---|---|---|"
    )
    for sparsity in OPTIONS.sparsity:
        for batch_size in OPTIONS.batch_sizes:
            model = random_model(OPTIONS.layers, sparsity)
            result = bench(model, new_tokens=OPTIONS.new_tokens, repeats=3, batch_size=batch_size)
            rates = result.dense_tokens_per_second
            best = rates[result.dense_implementation]
            rows = {name: (rate, result.dense_bytes) for name, rate in rates.items()}
            rows["packed"] = (result.packed_tokens_per_second, result.packed_bytes)
            for name, (rate, size) in rows.items():
                print(
                    f"| {sparsity:.0%} | {batch_size} | {name} | {rate:.1f} | {rate / best:.2f} | {size / 1e9:.2f} |",
                    flush=True,
                )
            del model


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Perplexity and word-problem accuracy of recipes at several sparsities, on one model, from one calibration pass.

    python benchmarks/python/quality.py MODEL --calibration calibration.jsonl --validation validation.jsonl \
        --wordmath wordmath_test.jsonl --output results.jsonl

Every pruned model is saved, loaded again and judged by the loaded copy; a finished row in --output is not run twice. A
Markdown table of all rows is printed at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer

import stun_ext
from stun_ext.evaluation import evaluate

SIMILARITY = {"criterion": "similarity", "similarity": (1.0, 0.0)}
# The released STUN code: star rule, one threshold for all layers, the member nearest to the cluster's mean.
RECIPES = {
    "Wanda only": {"expert_sparsity": 0.0},
    "OWL only": {"expert_sparsity": 0.0, "weight_method": "owl"},
    "released star rule, global threshold, + Wanda": {**SIMILARITY, "linkage": "star", "per_layer": "global"},
    "complete linkage on router rows, uniform + Wanda": {**SIMILARITY, "linkage": "complete"},
    "random + Wanda": {"criterion": "random"},
    "REAP + Wanda": {"criterion": "reap"},
    "weighted_norm_sum + Wanda": {"criterion": "weighted_norm_sum"},
}
EXPERT_SPARSITY = {0.4: 0.125, 0.5: 0.125, 0.65: 0.1875}
DEFAULT = "default: stun_ext.prune(model, sparsity=s, calibration=...)"


def rows_to_run(sparsities: list[float]) -> list[tuple[str, dict]]:
    rows: list[tuple[str, dict]] = []
    for sparsity in sparsities:
        for name, settings in RECIPES.items():
            share = EXPERT_SPARSITY.get(sparsity, 0.125)
            rows.append((name, {"sparsity": sparsity, "expert_sparsity": share, **settings}))
        rows.append((DEFAULT, {"sparsity": sparsity}))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--validation", required=True)
    parser.add_argument("--wordmath", required=True)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.4, 0.5, 0.65])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", type=Path, help="keep the pruned checkpoints under this folder")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    stun_ext.ops.set_num_threads(args.threads)

    done = [json.loads(line) for line in args.output.read_text().splitlines()] if args.output.exists() else []
    tokenizer = AutoTokenizer.from_pretrained(args.model)

    def judge(model: torch.nn.Module) -> dict:
        result = evaluate(model, tokenizer, args.validation, args.wordmath)
        return {"perplexity": result.perplexity, "accuracy": result.accuracy, "domains": result.domains}

    def finish(row: dict) -> None:
        done.append(row)
        with args.output.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"{row['recipe']} {row['sparsity']}: {row['perplexity']:.3f} {row['accuracy']:.3f}",
            file=sys.stderr,
        )

    dense = stun_ext.from_pretrained(args.model, dtype=torch.float32).to(args.device).eval()
    if not any(row["recipe"] == "dense" for row in done):
        finish({"recipe": "dense", "sparsity": 0.0, **judge(dense)})
    statistics = None
    for name, settings in rows_to_run(args.sparsities):
        if any(row["recipe"] == name and row["sparsity"] == settings["sparsity"] for row in done):
            continue
        if statistics is None:
            statistics = stun_ext.collect_statistics(dense, tokenizer=tokenizer, calibration=args.calibration)
        start = time.perf_counter()
        model = stun_ext.from_pretrained(args.model).to(args.device).eval()
        report = stun_ext.prune(model, statistics=statistics, **settings)
        seconds = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as folder:
            out = Path(args.keep or folder) / f"{settings['sparsity']}-{name.split(':')[0].replace(' ', '_')}"
            stun_ext.save_pretrained(model, out, tokenizer=tokenizer, force=True)
            result = judge(stun_ext.from_pretrained(out, dtype=torch.float32).to(args.device).eval())
        finish(
            {
                "recipe": name,
                "sparsity": settings["sparsity"],
                "reached": report.sparsity,
                "experts_kept": 1 - report.expert_sparsity,
                "weights_zeroed": report.weight_sparsity,
                "prune_seconds": round(seconds, 2),
                **result,
            }
        )
    print(table(done))


def table(rows: list[dict]) -> str:
    lines = [
        "| total | experts kept | weights zeroed in them | recipe | ppl | accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: -row["sparsity"]):
        kept, zeroed = row.get("experts_kept", 1.0), row.get("weights_zeroed", 0.0)
        lines.append(
            f"| {row['sparsity']:.0%} | {kept:.1%} | {zeroed:.1%} | {row['recipe']} "
            f"| {row['perplexity']:.2f} | {row['accuracy']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""The demo's work: the bundled model dense, pruned by Wanda alone and by the default recipe, and measured."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import stun_ext
from stun_ext import demo

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from stun_ext.evaluation import EvalResult
    from stun_ext.report import PruneReport

Progress = Callable[[str, int, int], None]

SPARSITIES = (0.4, 0.5, 0.65)

# Run by an interpreter of its own. It knows Transformers and the checkpoint, and nothing of this package.
_STOCK_PROGRAM = """\
import json, sys
import torch
from transformers import AutoModelForCausalLM

path, tokens, logits = sys.argv[1:]
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
with torch.no_grad():
    torch.save(model(torch.load(tokens)).logits, logits)
ours = [name for name in sys.modules if name.split(".")[0] == "stun_ext"]
print(json.dumps({"class": type(model).__name__, "num_experts": model.config.num_experts, "imported": ours}))
"""


@dataclass(frozen=True)
class Row:
    """One model of the comparison. Sparsities are those reached, counted on the result."""

    recipe: str
    asked_sparsity: float
    sparsity: float
    experts_kept: int  # over all layers
    experts_before: int
    weight_sparsity: float  # zeros among the weights of the experts that stayed
    perplexity: float
    accuracy: float
    num_problems: int
    prune_seconds: float


@dataclass(frozen=True)
class StockLoad:
    """What a process that does not know this package found when it loaded a pruned checkpoint."""

    checkpoint: str
    model_class: str
    experts_per_layer: int
    imported_stun_ext: bool
    largest_logit_difference: float  # from the model in memory


@dataclass
class Comparison:
    """Everything the demo shows."""

    rows: list[Row] = field(default_factory=list)
    stock: StockLoad | None = None
    calibration: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def compare(*, quick: bool = False, keep: Path | None = None, progress: Progress | None = None) -> Comparison:
    """Runs the demo.

    One calibration pass serves every recipe. The last pruned model is saved and loaded again by a process of
    stock Transformers.

    Args:
        quick: 65% alone, fewer windows and problems.
        keep: directory for the saved checkpoint, which must not exist; None uses a temporary one.
        progress: called with (phase, done, total).

    Raises:
        ValueError: ``keep`` exists.
    """
    import torch

    from stun_ext.checkpoint import out_is_free

    if keep is not None:
        out_is_free(keep, False)
    threads = torch.get_num_threads()
    # Work on so small a model comes in pieces of microseconds: threads would mostly wait for each other, on a busy
    # machine ten times longer than one takes alone.
    torch.set_num_threads(1)
    try:
        return _compare(quick, keep, progress or (lambda phase, done, total: None))
    finally:
        torch.set_num_threads(threads)


def _compare(quick: bool, keep: Path | None, tick: Progress) -> Comparison:
    import torch
    from transformers import AutoTokenizer

    start = time.perf_counter()
    # float32 because many CPUs are slow at bfloat16; the weights are the same numbers.
    dense = stun_ext.from_pretrained(demo.MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(demo.MODEL)
    statistics = stun_ext.collect_statistics(
        dense,
        tokenizer=tokenizer,
        calibration=demo.CALIBRATION,
        progress=lambda _, done, total: tick("calibrate", done, total),
    )
    found = Comparison(calibration=f"{statistics.num_tokens:,} tokens of the bundled text")
    sparsities = SPARSITIES[-1:] if quick else SPARSITIES
    models = 1 + 2 * len(sparsities)
    tick("measure", 0, models)
    base = _evaluate(dense, tokenizer, quick)
    experts = sum(layer.num_experts for layer in stun_ext.analyze(dense).layers)
    found.rows.append(_row("dense", 0.0, None, experts, base, 0.0))
    tick("measure", 1, models)
    pruned = dense
    for sparsity in sparsities:
        for name, expert_sparsity in (("Wanda alone", 0.0), ("default recipe", None)):
            pruned = copy.deepcopy(dense)
            began = time.perf_counter()
            report = stun_ext.prune(
                pruned, statistics=statistics, sparsity=sparsity, expert_sparsity=expert_sparsity
            )
            seconds = time.perf_counter() - began
            if expert_sparsity is not None or report.kept_experts < experts:
                result = _evaluate(pruned, tokenizer, quick)
            # else: no expert went, so it is the model of the row above
            found.rows.append(_row(name, sparsity, report, experts, result, seconds))
            tick("measure", len(found.rows), models)
    tick("load with Transformers", 0, 1)
    with _folder(keep) as out:
        found.stock = _load_in_stock_process(pruned, tokenizer, out)
    tick("load with Transformers", 1, 1)
    found.seconds = time.perf_counter() - start
    return found


def _evaluate(model: PreTrainedModel, tokenizer: Any, quick: bool) -> EvalResult:
    from stun_ext.evaluation import evaluate

    windows, max_problems = (3, 50) if quick else (12, 200)
    return evaluate(
        model, tokenizer, demo.VALIDATION, demo.WORDMATH, windows=windows, max_problems=max_problems
    )


def _row(
    name: str, asked: float, report: PruneReport | None, experts: int, result: EvalResult, seconds: float
) -> Row:
    return Row(
        recipe=name,
        asked_sparsity=asked,
        sparsity=0.0 if report is None else report.sparsity,
        experts_kept=experts if report is None else report.kept_experts,
        experts_before=experts,
        weight_sparsity=0.0 if report is None else report.weight_sparsity,
        perplexity=result.perplexity,
        accuracy=result.accuracy or 0.0,
        num_problems=result.num_problems,
        prune_seconds=seconds,
    )


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="stun-ext-demo-") as folder:
        yield Path(folder) / "pruned"


def _load_in_stock_process(model: PreTrainedModel, tokenizer: Any, out: Path) -> StockLoad:
    """Saves `model` to `out` and has another process load it and compute some logits.

    Raises:
        RuntimeError: that process failed, with what it said.
    """
    import torch

    text = demo.WORDMATH.read_text(encoding="utf-8")[:1000]
    tokens = torch.tensor([tokenizer(text).input_ids])
    with torch.no_grad():
        ours: torch.Tensor = model(tokens).logits
    stored = copy.deepcopy(model)
    torch.nn.Module.to(stored, torch.bfloat16)  # what the weights were before: no digit is lost
    stun_ext.save_pretrained(stored, out, source=demo.MODEL)
    with tempfile.TemporaryDirectory(prefix="stun-ext-demo-") as name:
        scratch = Path(name)
        torch.save(tokens, scratch / "tokens.pt")
        # -I: the other process looks into neither this folder nor the environment's PYTHONPATH.
        command = [sys.executable, "-I", "-c", _STOCK_PROGRAM, str(out)]
        command += [str(scratch / "tokens.pt"), str(scratch / "logits.pt")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"stock Transformers could not load {out}:\n{done.stderr}")
        theirs: torch.Tensor = torch.load(scratch / "logits.pt")
    said = json.loads(done.stdout.splitlines()[-1])
    return StockLoad(
        checkpoint=str(out),
        model_class=said["class"],
        experts_per_layer=said["num_experts"],
        imported_stun_ext=bool(said["imported"]),
        largest_logit_difference=float((ours - theirs).abs().max()),
    )

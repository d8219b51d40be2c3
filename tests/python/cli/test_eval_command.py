# SPDX-License-Identifier: Apache-2.0
"""eval hands its flags to the evaluation and prints what it found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture
def validation(tmp_path: Path, text_file: Path) -> Path:
    path = tmp_path / "validation.jsonl"
    text = text_file.read_text()
    lines = [{"domain": "a", "text": text}, {"domain": "b", "text": text[::-1]}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_perplexity_is_the_model_s_own(invoke, olmoe: Path, validation: Path) -> None:
    """Against the loss that Transformers computes itself, one window at a time."""
    result = invoke(
        "eval", olmoe, "--validation", validation, "--windows", "3", "--seq-length", "32",
        "--dtype", "float32", "--device", "cpu", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["accuracy"], found["num_problems"], found["wordmath"]) == (None, 0, None)
    assert found["validation"] == str(validation)
    model = AutoModelForCausalLM.from_pretrained(olmoe, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(olmoe)
    for line in validation.read_text().splitlines():
        document = json.loads(line)
        ids = torch.tensor(tokenizer(document["text"]).input_ids)
        losses = []
        for start in (0, 32, 64):
            logits = model(ids[None, start : start + 32]).logits[0].log_softmax(-1)
            losses.append(-logits.gather(1, ids[start + 1 : start + 33, None]).mean().item())
        expected = torch.tensor(losses).mean().exp().item()
        assert found["domains"][document["domain"]] == pytest.approx(expected, rel=1e-4)


def test_a_bfloat16_checkpoint_is_judged_in_float32(
    invoke, olmoe: Path, validation: Path, tmp_path: Path
) -> None:
    stored = tmp_path / "bfloat16"
    AutoModelForCausalLM.from_pretrained(olmoe, dtype=torch.bfloat16).save_pretrained(stored)
    AutoTokenizer.from_pretrained(olmoe).save_pretrained(stored)

    def perplexity(*flags: str) -> float:
        command = (
            "eval",
            stored,
            "--validation",
            validation,
            "--seq-length",
            "32",
            "--device",
            "cpu",
            "--json",
        )
        result = invoke(*command, *flags)
        assert result.exit_code == 0, result.stderr
        return float(json.loads(result.stdout)["perplexity"])

    assert perplexity() == perplexity("--dtype", "float32")
    assert perplexity() != perplexity("--dtype", "auto")


def test_word_problems_and_the_table(invoke, olmoe: Path, validation: Path, tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"prompt": "every expert", "answer": 1}\n' * 3)
    result = invoke(
        "eval", olmoe, "--validation", validation, "--wordmath", problems, "--max-problems", "2",
        "--windows", "1", "--seq-length", "16", "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "word problems solved, of 2" in result.stdout
    for domain in ("a", "b", "all"):
        assert domain in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--validation", "missing.jsonl"], "no such file: missing.jsonl"),
        (["--wordmath", "missing.jsonl"], "no such file: missing.jsonl"),
        (["--windows", "0"], "windows"),
        (["--device", "toaster"], "device"),
    ],
)
def test_refusals(invoke, olmoe: Path, arguments: list[str], message: str) -> None:
    result = invoke("eval", olmoe, *arguments)
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""

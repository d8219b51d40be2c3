# SPDX-License-Identifier: Apache-2.0
"""`evaluate` against a plain reference, and against the independent judge where it is at hand."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from calibration_reference import byte_tokenizer, tiny_model

import stun_ext.evaluation as evaluation
from stun_ext.evaluation import evaluate

EOS = 256
DOCUMENTS = [
    {"domain": "verse", "text": "Tyger Tyger, burning bright, in the forests of the night"},
    {"domain": "prose", "text": "It is a truth universally acknowledged, that a single man"},
    {"domain": "verse", "text": "What immortal hand or eye could frame thy fearful symmetry?"},
    {"domain": "prose", "text": "in possession of a good fortune, must be in want of a wife."},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture
def model() -> Any:
    return tiny_model("qwen3_moe", torch.float32, vocab_size=300, eos_token_id=EOS)


def write(path: Path, objects: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in objects))
    return path


def reference_nll(model: Any, ids: list[int], count: int, length: int) -> float:
    """Mean over every predicted token, one at a time, of -log softmax in float64."""
    total = []
    with torch.no_grad():
        for start in range(0, count * length, length):
            logits = model.eval()(torch.tensor(ids[start : start + length])[None]).logits[0].double()
            for position in range(length):
                total.append(-float(logits[position].log_softmax(0)[ids[start + position + 1]]))
    return sum(total) / len(total)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_perplexity_equals_reference(model: Any, tokenizer: Any, tmp_path: Path, batch_size: int) -> None:
    ticks: list[tuple[int, int]] = []
    model.train()
    path = write(tmp_path / "validation.jsonl", DOCUMENTS)
    settings = {"windows": 5, "seq_length": 20, "batch_size": batch_size}
    got = evaluate(
        model, tokenizer, path, progress=lambda done, total: ticks.append((done, total)), **settings
    )
    assert model.training
    want = {}
    for domain in ("verse", "prose"):
        ids = [t for d in DOCUMENTS if d["domain"] == domain for t in [*d["text"].encode(), EOS]]
        count = min(5, (len(ids) - 1) // 20)
        assert count == 5
        want[domain] = reference_nll(model, ids, count, 20)
    assert list(got.domains) == ["verse", "prose"]
    for domain, value in got.domains.items():
        assert value == pytest.approx(math.exp(want[domain]), rel=1e-5)
    assert got.perplexity == pytest.approx(math.exp(sum(want.values()) / 2), rel=1e-5)
    assert (got.accuracy, got.num_problems, got.num_tokens) == (None, 0, 200)
    batches = 2 * math.ceil(5 / batch_size)
    assert ticks == [(done, batches) for done in range(1, batches + 1)]
    assert evaluate(model, tokenizer, DOCUMENTS, **settings) == got
    assert got.to_dict()["domains"] == got.domains


def test_last_partial_window_is_left_out(model: Any, tokenizer: Any) -> None:
    text = "x" * 40  # 41 tokens: two windows of 20 and the token after; 40 tokens: only one
    assert evaluate(model, tokenizer, [text], windows=9, seq_length=20).num_tokens == 40
    assert evaluate(model, tokenizer, [text[1:]], windows=9, seq_length=20).num_tokens == 20
    assert evaluate(model, tokenizer, [text], windows=1, seq_length=20).num_tokens == 20


def test_word_problems_equal_generate(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """A model that has learnt some answers by heart, judged by `generate` one prompt at a time."""
    prompts = [f"Question: {word}?\nAnswer:" for word in ["one", "two", "three", "four", "seven", "eleven"]]
    answers = [
        " 1 #### 1\n",
        " 2 #### 2\n",
        " #### 3 \nand",
        " 4 ####\n",
        " 7 #### 77\n",
        " 11 #### 11\nQuestion",
    ]
    torch.manual_seed(0)
    model = tiny_model("mixtral", torch.float32, vocab_size=300, eos_token_id=EOS, hidden_size=32)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.mul_(0.3) if "norm" not in name else tensor.fill_(1.0)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    texts = [torch.tensor([*(p + a).encode()]) for p, a in zip(prompts, answers, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=-100)
    for _ in range(150):
        loss = model(ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.02:
            break
    # Settings that must not matter: they would make `generate` sample, repeat less, and stop early.
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=9.0, max_length=3)
    right = ["1", "2", "3", "4", "7", 11]
    path = write(
        tmp_path / "problems.jsonl", [{"prompt": p, "answer": a} for p, a in zip(prompts, right, strict=True)]
    )
    got = evaluate(model, tokenizer, ["x" * 50], path, seq_length=20, problem_batch_size=2)

    solved = 0
    for prompt, answer in zip(prompts, right, strict=True):
        ids = torch.tensor([[*prompt.encode()]])
        for _ in range(40):
            with torch.no_grad():
                ids = torch.cat([ids, model.eval()(ids).logits[:, -1:].argmax(-1)], 1)
        text = tokenizer.decode(ids[0, len(prompt) :])
        solved += text.split("\n")[0].strip().endswith(f"#### {answer}")
    assert solved == 4  # learnt by heart, but two of the answers learnt are not the answers asked for
    assert got.accuracy == solved / 6
    assert got.num_problems == 6
    first = evaluate(model, tokenizer, ["x" * 50], path, seq_length=20, max_problems=2)
    assert (first.accuracy, first.num_problems) == (1.0, 2)
    for use_cache in (False, True):
        evaluation_with = pytest.MonkeyPatch()
        evaluation_with.setattr(evaluation, "cache_is_sound", lambda model, value=use_cache: value)
        assert evaluate(model, tokenizer, ["x" * 50], path, seq_length=20) == got
        evaluation_with.undo()


def test_broken_model_has_infinite_perplexity(model: Any, tokenizer: Any) -> None:
    with torch.no_grad():
        model.lm_head.weight.mul_(1e6)
    got = evaluate(model, tokenizer, ["some text of some length"], seq_length=20)
    assert got.perplexity == math.inf


@pytest.mark.parametrize(
    "name", ["windows", "max_problems", "seq_length", "batch_size", "problem_batch_size"]
)
def test_settings_out_of_range(name: str, model: Any, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=rf"\[evaluate\] {name} must be at least 1, got 0"):
        evaluate(model, tokenizer, DOCUMENTS, **{name: 0})


def test_refusals_before_running(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a forward pass was run")

    model.forward = refuse
    enough = ["x" * 600]
    for validation, message in [
        ([], "validation must hold at least one document, got none"),
        (
            ["short"],
            "domain 'text' has 6 tokens, one window needs 513; give more text or a smaller seq_length",
        ),
        ([{"text": 5}], "validation item 0: must be a str or have a str 'text'"),
        (write(tmp_path / "a.jsonl", [{"body": "x"}]), "line 1: must be an object with 'text'"),
    ]:
        with pytest.raises(ValueError, match=rf"\[evaluate\] .*{message}"):
            evaluate(model, tokenizer, validation)
    for problems, message in [
        ([], "holds no problem"),
        ([{"prompt": "x"}], "line 1: must be an object with 'answer'"),
        ([{"prompt": "", "answer": "x"}], "a prompt has no tokens"),
    ]:
        with pytest.raises(ValueError, match=rf"\[evaluate\] .*{message}"):
            evaluate(model, tokenizer, enough, write(tmp_path / "b.jsonl", problems))
    with pytest.raises(FileNotFoundError, match=r"\[evaluate\] .*absent\.jsonl: no such file"):
        evaluate(model, tokenizer, tmp_path / "absent.jsonl")
    with pytest.raises(ValueError, match=r"\[evaluate\] texts need the model's tokenizer, got None"):
        evaluate(model, None, enough)
    small = tiny_model("mixtral", torch.float32, vocab_size=200)
    with pytest.raises(ValueError, match=r"\[evaluate\] token ids must be in \[0, 199\].* got 256"):
        evaluate(small, tokenizer, ["x"] * 600)


@pytest.mark.slow
def test_agrees_with_the_independent_judge(shared: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, texts = shared / "models" / "olmoe-5m", shared / "eval"
    command = [
        sys.executable,
        str(texts / "evaluate.py"),
        str(folder),
        str(texts),
        "--math",
        "50",
        "--windows",
        "3",
    ]
    # Its two threads would spin against whatever else the machine does.
    quiet = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=quiet).stdout
    want = json.loads(output[output.index('{"ppl"') :])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    validation, problems = texts / "validation.jsonl", texts / "wordmath_test.jsonl"
    got = evaluate(model, tokenizer, validation, problems, max_problems=50, windows=3)
    assert got.perplexity == pytest.approx(want["ppl"], rel=1e-5)
    assert got.domains == pytest.approx(want["domains"], rel=1e-5)
    assert got.accuracy == want["accuracy"]
    assert got.num_problems == 50

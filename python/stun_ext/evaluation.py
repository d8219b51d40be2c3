# SPDX-License-Identifier: Apache-2.0
"""Perplexity over text domains and accuracy on word problems, as the project's tables report them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 (its usual name)

from stun_ext._inference import cache_is_sound, decode, embedding_weight, evaluation_mode, input_device
from stun_ext.calibration_data import document_ids, read_jsonl

_MAX_NEW_TOKENS = 40


@dataclass(frozen=True)
class EvalResult:
    """What `evaluate` found.

    Attributes:
        perplexity: exp of the mean over domains of the mean negative log-likelihood per token, in nats.
        domains: perplexity of each domain, in the file's order.
        accuracy: share of word problems solved, in [0, 1]; None without word problems.
        num_problems: word problems tried.
        num_tokens: tokens predicted for the perplexity.
    """

    perplexity: float
    domains: dict[str, float]
    accuracy: float | None
    num_problems: int
    num_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def evaluate(
    model: torch.nn.Module,
    tokenizer: Any,
    validation: str | os.PathLike[str] | Iterable[Mapping[str, Any] | str],
    wordmath: str | os.PathLike[str] | None = None,
    *,
    windows: int = 12,
    max_problems: int = 200,
    seq_length: int = 512,
    batch_size: int = 6,
    problem_batch_size: int = 50,
    progress: Callable[[int, int], None] | None = None,
) -> EvalResult:
    """Measure a causal language model on validation text and, if given, on word problems.

    Perplexity: in each domain the documents, each followed by the end-of-sequence token, are joined; the
    first ``windows`` windows of ``seq_length`` tokens are predicted, each token from those before it in its
    window. Log-likelihoods are taken in float32.

    Word problems: the greedy continuation of ``prompt``, at most 40 tokens, must have a first line that ends
    with ``#### answer``. Prompts of equal length are decoded side by side, so no padding and no padding side
    is involved, and the checkpoint's generation settings play no part except its end tokens.

    Args:
        model: causal language model; its training flags are restored.
        tokenizer: the model's tokenizer.
        validation: .jsonl path of ``{"text": …, "domain": …}``, or such mappings, or plain texts (one
            domain).
        wordmath: .jsonl path of ``{"prompt": …, "answer": …}``, or None.
        windows: windows per domain at most, >= 1.
        max_problems: the first so many problems of the file, >= 1.
        seq_length: tokens of a window, >= 1.
        batch_size: windows of one forward pass.
        problem_batch_size: prompts decoded side by side at most.
        progress: called with (done, total) batches of windows and problems.

    Returns:
        An EvalResult.

    Raises:
        ValueError: before any forward pass: a setting out of range, an empty file, a domain too short for one
            window, ids outside the model's embedding, a malformed line.
        FileNotFoundError: a path that does not exist.
    """
    for name, value in (
        ("windows", windows),
        ("max_problems", max_problems),
        ("seq_length", seq_length),
        ("batch_size", batch_size),
        ("problem_batch_size", problem_batch_size),
    ):
        if value < 1:
            raise ValueError(f"[evaluate] {name} must be at least 1, got {value}")
    if tokenizer is None:
        raise ValueError("[evaluate] texts need the model's tokenizer, got None")
    vocabulary = embedding_weight(model).shape[0]
    domains = _domains(tokenizer, validation, windows, seq_length, vocabulary)
    problems = [] if wordmath is None else _problems(tokenizer, wordmath, max_problems, vocabulary)
    groups = _equal_length_groups(problems, problem_batch_size)
    total = sum(math.ceil((len(ids) - 1) / seq_length / batch_size) for ids in domains.values()) + len(groups)
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    with evaluation_mode(model):
        nll = {name: _mean_nll(model, ids, seq_length, batch_size, advance) for name, ids in domains.items()}
        use_cache = bool(groups) and cache_is_sound(model)
        solved = 0
        for group in groups:
            solved += _count_solved(model, tokenizer, group, use_cache)
            advance()
    return EvalResult(
        perplexity=_exp(sum(nll.values()) / len(nll)),
        domains={name: _exp(value) for name, value in nll.items()},
        accuracy=solved / len(problems) if problems else None,
        num_problems=len(problems),
        num_tokens=sum(len(ids) - 1 for ids in domains.values()),
    )


def _exp(value: float) -> float:
    """exp, infinite instead of an OverflowError for a model that pruning has broken."""
    return math.exp(value) if value < 709.0 else math.inf


@dataclass(frozen=True)
class _Problem:
    prompt: list[int]
    answer: str


def _domains(
    tokenizer: Any,
    validation: str | os.PathLike[str] | Iterable[Mapping[str, Any] | str],
    windows: int,
    seq_length: int,
    vocabulary: int,
) -> dict[str, list[int]]:
    """Ids of each domain, cut to n·seq_length + 1: every window and the token after the last one."""
    if isinstance(validation, (str, os.PathLike)):
        documents: list[Mapping[str, Any]] = list(read_jsonl(validation, ("text",), "evaluate"))
    else:
        documents = [{"text": item} if isinstance(item, str) else item for item in validation]
    if not documents:
        raise ValueError("[evaluate] validation must hold at least one document, got none")
    ids: dict[str, list[int]] = {}
    for index, document in enumerate(documents):
        text = document.get("text") if isinstance(document, Mapping) else None
        if not isinstance(text, str):
            raise ValueError(f"[evaluate] validation item {index}: must be a str or have a str 'text'")
        known = ids.setdefault(str(document.get("domain", "text")), [])
        if len(known) <= windows * seq_length:  # later documents could not change the first windows
            known += document_ids(tokenizer, text)
    for name, known in ids.items():
        count = min(windows, (len(known) - 1) // seq_length)
        if count < 1:
            raise ValueError(
                f"[evaluate] domain {name!r} has {len(known)} tokens, one window needs {seq_length + 1}; "
                "give more text or a smaller seq_length"
            )
        ids[name] = known[: count * seq_length + 1]
        _check_ids(ids[name], vocabulary)
    return ids


def _check_ids(ids: Sequence[int], vocabulary: int) -> None:
    if max(ids) >= vocabulary:
        raise ValueError(
            f"[evaluate] token ids must be in [0, {vocabulary - 1}], the rows of the model's embedding, got "
            f"{max(ids)}: the tokenizer does not belong to this model"
        )


def _mean_nll(
    model: torch.nn.Module, ids: list[int], seq_length: int, batch_size: int, advance: Callable[[], None]
) -> float:
    """Mean negative log-likelihood per token, in nats."""
    tokens = torch.tensor(ids, device=input_device(model))
    inputs, targets = tokens[:-1].view(-1, seq_length), tokens[1:].view(-1, seq_length)
    total = 0.0
    for start in range(0, len(inputs), batch_size):
        logits = model(input_ids=inputs[start : start + batch_size], use_cache=False).logits
        for row, target in zip(logits, targets[start : start + batch_size], strict=True):
            # One window at a time: a float32 copy of all logits can be larger than the model.
            total += F.cross_entropy(row.float(), target.to(row.device), reduction="sum").item()
        advance()
    return total / targets.numel()


def _problems(
    tokenizer: Any, wordmath: str | os.PathLike[str], max_problems: int, vocabulary: int
) -> list[_Problem]:
    lines = read_jsonl(wordmath, ("prompt", "answer"), "evaluate")[:max_problems]
    if not lines:
        raise ValueError(f"[evaluate] {os.fspath(wordmath)}: holds no problem")
    problems = [_Problem(list(tokenizer(str(x["prompt"])).input_ids), str(x["answer"])) for x in lines]
    for problem in problems:
        if not problem.prompt:
            raise ValueError(f"[evaluate] {os.fspath(wordmath)}: a prompt has no tokens")
        _check_ids(problem.prompt, vocabulary)
    return problems


def _equal_length_groups(problems: list[_Problem], size: int) -> list[list[_Problem]]:
    by_length: dict[int, list[_Problem]] = {}
    for problem in problems:
        by_length.setdefault(len(problem.prompt), []).append(problem)
    return [
        group[start : start + size]
        for _, group in sorted(by_length.items())
        for start in range(0, len(group), size)
    ]


def _count_solved(model: torch.nn.Module, tokenizer: Any, group: list[_Problem], use_cache: bool) -> int:
    prompts = torch.tensor([problem.prompt for problem in group], device=input_device(model))
    ends = _end_tokens(model)
    written: list[list[int]] = [[] for _ in group]
    finished = [False] * len(group)

    def choose(logits: torch.Tensor, _: int) -> torch.Tensor | None:
        chosen = logits.argmax(dim=-1)
        for row, token in enumerate(chosen.tolist()):
            if finished[row]:
                continue
            written[row].append(token)
            finished[row] = token in ends or "\n" in tokenizer.decode(written[row])
        return None if all(finished) else chosen

    decode(model, prompts, _MAX_NEW_TOKENS, choose, use_cache=use_cache)
    return sum(
        tokenizer.decode(tokens).split("\n")[0].strip().endswith(f"#### {problem.answer}")
        for tokens, problem in zip(written, group, strict=True)
    )


def _end_tokens(model: torch.nn.Module) -> frozenset[int]:
    value = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if value is None:
        value = getattr(model.config, "eos_token_id", None)
    return frozenset(value if isinstance(value, (list, tuple)) else () if value is None else (value,))

# SPDX-License-Identifier: Apache-2.0
"""`load_calibration`: every kind, the windows cut, and refusals before any forward pass."""

from __future__ import annotations

import json
import random
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calibration_reference import byte_tokenizer, tiny_model
from torch.utils.data import DataLoader, TensorDataset
from transformers import BatchEncoding

import stun_ext._sampling as sampling
from stun_ext.calibration_data import CalibrationSet, load_calibration

EOS = 256


@pytest.fixture(scope="module")
def model() -> Any:
    model = tiny_model("mixtral", torch.float32, vocab_size=300, eos_token_id=EOS)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a forward pass was run")

    model.forward = refuse
    return model


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


def load(calibration: Any, model: Any, tokenizer: Any = None, **settings: Any) -> CalibrationSet:
    defaults = {"num_samples": 6, "max_seq_length": 8, "batch_size": 4, "seed": 0}
    return load_calibration(calibration, model, tokenizer, **{**defaults, **settings})


def rows(found: CalibrationSet) -> list[list[int]]:
    """The sequences, padding dropped, after checks that hold for every kind."""
    sequences = []
    for batch in found.batches:
        assert batch["input_ids"].dtype == torch.int64
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        assert mask.shape == batch["input_ids"].shape
        assert bool((mask.diff(dim=1) <= 0).all())  # padding on the right only
        sequences += [ids[kept.bool()].tolist() for ids, kept in zip(batch["input_ids"], mask, strict=True)]
    assert found.num_samples == len(sequences)
    assert found.num_tokens == sum(map(len, sequences))
    return sequences


def ids_of(*documents: str) -> list[int]:
    return [token for text in documents for token in [*text.encode(), EOS]]


def windows(ids: list[int], length: int) -> list[list[int]]:
    return [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]


# --- token batches ------------------------------------------------------------------------------------------

TOKENS = torch.arange(5 * 8).view(5, 8)
KINDS = {
    "tensor": TOKENS,
    "int32 tensor": TOKENS.int(),
    "numpy": TOKENS.numpy().astype(np.uint16),
    "list of matrices": [TOKENS[:2], TOKENS[2:]],
    "list of rows": list(TOKENS),
    "lists of ids": TOKENS.tolist(),
    "tuple": tuple(TOKENS),
    "one mapping": {"input_ids": TOKENS, "attention_mask": torch.ones(5, 8)},
    "mappings": [{"input_ids": TOKENS[:3]}, {"input_ids": TOKENS[3:]}],
    "mapping of a row": [{"input_ids": row.tolist(), "attention_mask": [1] * 8} for row in TOKENS],
    "batch encoding": [BatchEncoding({"input_ids": TOKENS[:3]}), BatchEncoding({"input_ids": TOKENS[3:]})],
    "loader of tuples": DataLoader(TensorDataset(TOKENS, TOKENS), batch_size=2),
    "inputs and targets": [(TOKENS[:1], TOKENS[:1]), (TOKENS[1:], TOKENS[1:])],
    "loader of mappings": DataLoader([{"input_ids": row} for row in TOKENS], batch_size=2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_token_batches_of_every_kind(kind: str, model: Any) -> None:
    found = load(KINDS[kind], model)
    assert rows(found) == TOKENS.tolist()
    assert [len(batch["input_ids"]) for batch in found.batches] == [4, 1]
    assert not any("attention_mask" in batch for batch in found.batches)
    assert found.source == "5 sequences, 40 tokens: the token batches given"


def test_token_batches_are_cut(model: Any) -> None:
    found = load(TOKENS, model, num_samples=3, max_seq_length=5)
    assert rows(found) == TOKENS[:3, :5].tolist()
    assert rows(load(TOKENS, model, max_seq_length=1000)) == TOKENS.tolist()


def test_masked_positions_are_dropped_and_lengths_padded(model: Any) -> None:
    mask = torch.ones(5, 8).long()
    mask[0, 6:] = 0  # padded on the right
    mask[2, :3] = 0  # on the left
    mask[4] = 0  # altogether: no sequence
    found = load({"input_ids": TOKENS, "attention_mask": mask}, model)
    assert rows(found) == [
        TOKENS[0, :6].tolist(),
        TOKENS[1].tolist(),
        TOKENS[2, 3:].tolist(),
        TOKENS[3].tolist(),
    ]
    assert rows(load([[1, 2, 3], [4], []], model)) == [[1, 2, 3], [4]]


def test_endless_source_is_read_as_far_as_needed(model: Any) -> None:
    def endless() -> Iterator[torch.Tensor]:
        for index in range(4):
            yield torch.full((2, 4), index)
        raise AssertionError("read too far")

    assert len(rows(load(endless(), model, num_samples=7))) == 7


# --- texts --------------------------------------------------------------------------------------------------


def test_texts_are_joined_with_the_end_token(model: Any, tokenizer: Any) -> None:
    texts = ["Wanda", "", "prunes by weight times input norm", "näïve"]
    want = windows(ids_of(*texts), 8)
    assert len(want) == 6
    for calibration in (texts, iter(texts), [texts[:1], texts[1:]], [{"text": text} for text in texts]):
        assert rows(load(calibration, model, tokenizer)) == want
    assert rows(load(texts, model, tokenizer, num_samples=2)) == want[:2]
    assert load(texts, model, tokenizer).source == "6 sequences, 48 tokens: the texts given"


def test_texts_are_read_as_far_as_needed(model: Any, tokenizer: Any) -> None:
    def endless() -> Iterator[str]:
        yield "0123456"
        yield "89"
        raise AssertionError("read too far")

    assert rows(load(endless(), model, tokenizer, num_samples=1)) == [ids_of("0123456")]


def test_txt_is_one_document(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("first line\n\nsecond line, naïve\n", encoding="utf-8")
    for name in (path, str(path)):
        found = load(name, model, tokenizer)
        assert rows(found) == windows(ids_of(path.read_text(encoding="utf-8")), 8)
        assert found.source == "4 sequences, 32 tokens: book.txt"


def test_jsonl_takes_the_first_windows_of_each_domain(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    lines = [
        ("b", "beta one, rather long"),
        ("a", "alpha"),
        ("b", "beta two, rather long"),
        ("a", "alpha again, longer"),
    ]
    path = tmp_path / "mix.jsonl"
    path.write_text("\n\n".join(json.dumps({"domain": d, "text": t, "extra": 1}) for d, t in lines) + "\n")
    b, a = (windows(ids_of(*(text for domain, text in lines if domain == name)), 8) for name in "ba")
    assert (len(b), len(a)) == (5, 3)
    assert rows(load(path, model, tokenizer, num_samples=4)) == b[:2] + a[:2]
    assert rows(load(path, model, tokenizer, num_samples=5)) == b[:3] + a[:2]
    assert rows(load(path, model, tokenizer, num_samples=100)) == b + a
    assert (
        load(path, model, tokenizer, num_samples=4).source == "4 sequences, 32 tokens: mix.jsonl, 2 domains"
    )


def test_jsonl_without_domains(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "plain.jsonl"
    path.write_text('{"text": "one document"}\n{"text": "and another"}\n')
    assert rows(load(path, model, tokenizer)) == windows(ids_of("one document", "and another"), 8)


def test_datasets(model: Any, tokenizer: Any) -> None:
    datasets = pytest.importorskip("datasets")
    texts = ["a document", "and another document"]
    text_set = datasets.Dataset.from_dict({"id": [1, 2], "text": texts})
    for calibration in (text_set, text_set.to_iterable_dataset()):
        found = load(calibration, model, tokenizer)
        assert rows(found) == windows(ids_of(*texts), 8)
        assert found.source.endswith("the data set given")
    token_set = datasets.Dataset.from_dict({"input_ids": TOKENS.tolist(), "text": ["x"] * 5})
    assert rows(load(token_set, model)) == TOKENS.tolist()
    with pytest.raises(ValueError, match=r"'text' or an 'input_ids' column, got \['id', 'body'\]"):
        load(datasets.Dataset.from_dict({"id": [1], "body": ["x"]}), model, tokenizer)
    with pytest.raises(ValueError, match=r"item 0: must have 'input_ids' or 'text', got \['train'\]"):
        load(datasets.DatasetDict({"train": text_set}), model, tokenizer)


# --- hub ----------------------------------------------------------------------------------------------------


def fake_datasets(monkeypatch: pytest.MonkeyPatch, stream: Any) -> list[Any]:
    """A package ``datasets`` whose streams are those given; returns the list of its calls."""
    calls: list[Any] = []

    class Stream:
        def shuffle(self, seed: int, buffer_size: int) -> Any:
            calls.append({"seed": seed, "buffer_size": buffer_size})
            return stream()

    def load_dataset(*args: Any, **kwargs: Any) -> Stream:
        calls.append((args, kwargs))
        return Stream()

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_hub_takes_one_random_window_of_each_long_document(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [f"{index:03d}" * (index % 7) for index in range(60)]  # 0 to 18 characters
    calls = fake_datasets(monkeypatch, lambda: iter({"text": text, "url": ""} for text in documents))
    found = load("allenai/c4", model, tokenizer, seed=5)
    assert calls == [
        (("allenai/c4", "en"), {"split": "train", "streaming": True}),
        {"seed": 5, "buffer_size": 10_000},
    ]
    long = [ids_of(text) for text in documents if len(text) + 1 >= 8]
    starts = []
    for window, document in zip(rows(found), long, strict=False):
        matches = [s for s in range(len(document) - 7) if document[s : s + 8] == window]
        assert matches
        starts.append(matches[0])
    assert len(starts) == 6 and len(set(starts)) > 1
    assert rows(load("allenai/c4", model, tokenizer, seed=5)) == rows(found)
    assert rows(load("allenai/c4", model, tokenizer, seed=6)) != rows(found)
    assert found.source == "6 sequences, 48 tokens: allenai/c4 (en), train, random windows, seed 5"

    calls.clear()
    load("owner/wiki:raw-v1:test", model, tokenizer)
    load("wiki", model, tokenizer)
    assert calls[0] == (("owner/wiki", "raw-v1"), {"split": "test", "streaming": True})
    assert calls[2] == (("wiki", None), {"split": "train", "streaming": True})


def test_hub_refusals(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="texts need the model's tokenizer"):
        load("allenai/c4", model)
    fake_datasets(monkeypatch, lambda: iter([{"text": "short"}, {"text": "long enough"}]))
    with pytest.raises(
        ValueError, match="c4: only 1 of 2 documents hold 8 tokens, 6 are needed; lower max_seq_length"
    ):
        load("allenai/c4", model, tokenizer)
    fake_datasets(monkeypatch, lambda: iter({"text": "short"} for _ in range(1_000_000)))
    with pytest.raises(ValueError, match="only 0 of 3000 documents"):
        load("allenai/c4", model, tokenizer)
    fake_datasets(monkeypatch, lambda: iter([{"body": "x"}]))
    with pytest.raises(ValueError, match=r"allenai/c4: rows must have 'text', got \['body'\]"):
        load("allenai/c4", model, tokenizer)

    def offline() -> None:
        raise RuntimeError("no route to host\nand much more")

    fake_datasets(monkeypatch, offline)
    with pytest.raises(
        OSError, match=r"cannot read the data set 'allenai/c4' from the hub: no route to host\. .*None"
    ):
        load("allenai/c4", model, tokenizer)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"needs the package datasets: pip install 'stun_ext\[datasets\]'"):
        load("allenai/c4", model, tokenizer)


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ([], "calibration is empty; pass token batches"),
        (torch.empty(0, 8).long(), "the token batches given hold no token"),
        ([[]], "the token batches given hold no token"),
        (False, "calibration=False names no data"),
        (7, "calibration must be token batches .* got int"),
        (
            TOKENS.float(),
            r"item 0: token ids must be integers of shape \[T\] or \[N, T\], got torch.float32 \[5, 8\]",
        ),
        (TOKENS[None], r"got torch.int64 \[1, 5, 8\]"),
        ([3, 4, 5], r"item 0: token ids must be integers of shape .* got torch.int64 \[\]"),
        ([TOKENS, ["text"]], "item 1: not token ids"),
        ([{"ids": TOKENS}], r"item 0: must have 'input_ids' or 'text', got \['ids'\]"),
        (
            [{"input_ids": TOKENS, "attention_mask": TOKENS[:2]}],
            r"item 0: attention_mask must have the shape .*\[5, 8\]",
        ),
        (TOKENS + 290, r"token ids must be in \[0, 299\], the rows of the model's embedding, got 305"),
        (TOKENS - 1, r"token ids must be in \[0, 299\].* got -1"),
        (["text", 5], "texts must be str, got int"),
        (
            ["short"],
            "the texts given: 6 tokens are not one window of 8; give more text or lower max_seq_length",
        ),
        ("missing.jsonl", "missing.jsonl: no such file"),
        ("missing.txt", "missing.txt: no such file"),
        ("a sentence of text", "'a sentence of text' is neither .* a text itself goes into a list"),
        (__file__, r"a file must end in \.jsonl or \.txt"),
    ],
)
def test_refusals(calibration: Any, message: str, model: Any, tokenizer: Any) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=rf"\[load_calibration\] .*{message}"):
        load(calibration, model, tokenizer)


@pytest.mark.parametrize("name", ["num_samples", "max_seq_length", "batch_size"])
def test_settings_out_of_range(name: str, model: Any) -> None:
    with pytest.raises(ValueError, match=rf"\[load_calibration\] {name} must be at least 1, got 0"):
        load(TOKENS, model, **{name: 0})


@pytest.mark.parametrize("calibration", [["a text of some length"], "book.txt", "mix.jsonl"])
def test_texts_without_tokenizer(calibration: Any, model: Any, tmp_path: Path) -> None:
    if isinstance(calibration, str):
        calibration = tmp_path / calibration
        calibration.write_text('{"text": "a text of some length"}\n')
    with pytest.raises(
        ValueError, match=r"texts need the model's tokenizer: pass tokenizer=…, token batches, or"
    ):
        load(calibration, model)


def test_tokenizer_of_another_model(tokenizer: Any) -> None:
    small = tiny_model("mixtral", torch.float32, vocab_size=200)
    with pytest.raises(
        ValueError, match=r"in \[0, 199\].* got 256: the tokenizer does not belong to this model"
    ):
        load(["a text of some length"], small, tokenizer)


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("", {}, "holds no text"),
        ('{"text": "x"}\n{"text": }\n', {}, "line 2: not JSON"),
        ('{"body": "x"}\n', {}, "line 1: must be an object with 'text'"),
        ("[1]\n", {}, "line 1: must be an object with 'text'"),
        ('{"text": 5}\n', {}, "line 1: 'text' must be a string"),
        (
            '{"text": "long enough text", "domain": "a"}\n{"text": "x", "domain": "b"}',
            {},
            "domain 'b': 2 tokens",
        ),
        (
            '{"text": "x", "domain": "a"}\n{"text": "x", "domain": "b"}',
            {"num_samples": 1},
            "has 2 domains: num_samples must be at least that, got 1",
        ),
    ],
)
def test_malformed_jsonl(
    content: str, settings: dict[str, int], message: str, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"\[load_calibration\] .*data\.jsonl.*{message}"):
        load(path, model, tokenizer, **settings)


# --- the model's own text -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator_model() -> Any:
    return tiny_model("qwen3_moe", torch.float32, bos_token_id=5, eos_token_id=9)


def test_sampling_is_deterministic_and_leaves_random_state_alone(generator_model: Any) -> None:
    generator_model.train()
    torch.manual_seed(123)
    before, python_before = torch.get_rng_state(), random.getstate()
    ticks: list[tuple[int, int]] = []
    first = load(None, generator_model, progress=lambda done, total: ticks.append((done, total)))
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python_before
    assert generator_model.training
    sequences = rows(first)
    assert [len(ids) for ids in sequences] == [8] * 6
    assert {ids[0] for ids in sequences} == {5}
    assert len({tuple(ids) for ids in sequences}) == 6
    torch.manual_seed(7)
    assert rows(load(None, generator_model)) == sequences
    assert rows(load(None, generator_model, seed=1)) != sequences
    assert ticks[-1] == (48, 48) and ticks == sorted(ticks)
    assert first.source == "6 sequences, 48 tokens: sampled from the model itself at temperature 1, seed 0"


def test_sampling_in_groups_or_without_cache_gives_the_same_text(
    generator_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = rows(load(None, generator_model, num_samples=7))
    monkeypatch.setattr(sampling, "_sampling_group", lambda *args: 3)
    assert rows(load(None, generator_model, num_samples=7)) == want
    monkeypatch.setattr(sampling, "cache_is_sound", lambda model: False)
    assert rows(load(None, generator_model, num_samples=7)) == want


@pytest.mark.parametrize("damage", ["ignores the cache", "returns none", "raises"])
def test_unsound_cache_is_not_used(damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("qwen3_moe", torch.float32, bos_token_id=5)
    want = rows(load(None, model))
    forward = model.forward

    def broken(input_ids: torch.Tensor, past_key_values: Any = None, use_cache: bool = False) -> Any:
        if damage == "raises" and past_key_values is not None:
            raise TypeError("unexpected cache")
        output = forward(input_ids=input_ids, use_cache=use_cache)
        if damage == "returns none":
            output.past_key_values = None
        return output

    monkeypatch.setattr(model, "forward", broken)
    assert rows(load(None, model)) == want


def test_sampling_follows_the_model_distribution() -> None:
    # With the head alone deciding, every step draws from one known distribution.
    model = tiny_model("mixtral", torch.float32, bos_token_id=1, eos_token_id=2)
    weights = torch.randn(64, generator=torch.Generator().manual_seed(0)).double()
    weights[10:] = -torch.inf
    model.lm_head.forward = lambda hidden: weights.float().expand(*hidden.shape[:-1], -1)
    ids = torch.tensor(rows(load(None, model, num_samples=400, max_seq_length=26)))[:, 1:]
    assert int(ids.max()) < 10  # impossible tokens never come, the end token (2) stops nothing
    counts = torch.bincount(ids.flatten(), minlength=10).double()[:10]
    want = weights[:10].softmax(0) * ids.numel()
    assert float(((counts - want) ** 2 / want).sum()) < 27.9  # chi-square, 9 degrees of freedom, p = 0.001


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"bos_token_id": None, "eos_token_id": [9, 3]}, {9}),
        ({"bos_token_id": None, "eos_token_id": None}, None),
    ],
)
def test_first_token(changes: dict[str, Any], first: set[int] | None) -> None:
    found = {
        ids[0] for ids in rows(load(None, tiny_model("mixtral", torch.float32, **changes), max_seq_length=2))
    }
    assert found == first if first else len(found) > 1


def test_length_is_bounded_by_the_context() -> None:
    model = tiny_model("mixtral", torch.float32, max_position_embeddings=16)
    assert {len(ids) for ids in rows(load(None, model, num_samples=1, max_seq_length=512))} == {16}


def test_model_that_says_nothing() -> None:
    model = tiny_model("mixtral", torch.float32)
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"\[load_calibration\] the model's logits are not finite"):
        load(None, model)

# SPDX-License-Identifier: Apache-2.0
"""Whatever a user calls calibration data, as checked batches of token ids before any forward pass."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stun_ext._inference import embedding_weight
from stun_ext._sampling import sample_sequences

#: A hub data set: documents read at most per sample wanted, and the buffer that its stream is shuffled in.
_HUB_DOCUMENTS_PER_SAMPLE = 500
_HUB_SHUFFLE_BUFFER = 10_000

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+){0,2}", re.ASCII)
_HUB_CONFIGS = {"allenai/c4": "en"}

_KINDS = (
    "token batches (a tensor [N, T], or a list of tensors or of dicts with 'input_ids'), a list of texts, a "
    "datasets data set with a 'text' or 'input_ids' column, a DataLoader, a .jsonl or .txt path, the name of "
    "a data set on the hub, or None for text sampled from the model itself"
)


@dataclass
class CalibrationSet:
    """Batches ready for `stun_ext.calibration.collect`.

    Attributes:
        batches: ``input_ids`` int64 ``[B, T]`` and, where sequences were padded (on the right),
            ``attention_mask`` int64 ``[B, T]``; on the CPU.
        source: what the text is, for people.
        num_samples: sequences.
        num_tokens: tokens, padding not counted.
    """

    batches: list[dict[str, torch.Tensor]]
    source: str
    num_samples: int
    num_tokens: int


def load_calibration(
    calibration: Any,
    model: torch.nn.Module,
    tokenizer: Any = None,
    *,
    num_samples: int = 128,
    max_seq_length: int = 512,
    batch_size: int = 8,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> CalibrationSet:
    """Turn ``calibration`` into checked token batches. Nothing is run, except to sample from the model.

    ``max_seq_length`` is first lowered to the model's ``max_position_embeddings``. Then, by kind:

    - Token batches (tensor ``[N, T]``; list of tensors, of id lists, or of mappings with ``input_ids`` and
      maybe ``attention_mask``; a DataLoader or any iterable of those; a data set with an ``input_ids``
      column): the first ``num_samples`` sequences, cut to ``max_seq_length``. Positions whose mask is 0 are
      dropped. Of an item that is a tuple of tensors, as loaders of (inputs, targets) give, the first counts.
    - Texts (list or iterable of str, a data set with a ``text`` column, .txt: the file as one document): the
      first ``num_samples`` windows of ``max_seq_length`` tokens of the documents in order, each followed by
      the end-of-sequence token.
    - .jsonl with one object ``{"text": …, "domain": …}`` a line: the same in each domain, of which every one
      gives ``num_samples / number of domains`` windows (when that leaves a remainder, the first domains give
      one more).
    - Name of a data set on the hub, ``name[:config[:split]]`` (config of ``allenai/c4``: ``en``; split:
      ``train``), as Wanda and STUN use C4: streamed in shuffled order, one random window of each document
      that is long enough. Needs the extra ``stun_ext[datasets]`` and a connection.
    - None: ``num_samples`` sequences of ``max_seq_length`` tokens drawn from the model, without a tokenizer:
      ancestral sampling at temperature 1, from the beginning-of-sequence (else end-of-sequence, else a
      random) token on. End tokens are kept and do not stop it. The draws come from ``seed`` alone; no global
      random state is read or moved.

    Args:
        calibration: see above.
        model: causal language model; its embedding size bounds the ids.
        tokenizer: called as ``tokenizer(text).input_ids``; needed for texts only.
        num_samples: sequences wanted, >= 1. A finite source may give fewer.
        max_seq_length: tokens of a sequence, >= 1.
        batch_size: sequences of a batch, >= 1.
        seed: of the sampling, and of the windows of a hub data set.
        progress: while sampling, called with (tokens drawn per sequence, their total).

    Returns:
        A CalibrationSet.

    Raises:
        ValueError: a setting out of range, a kind that is none of the above, nothing in it, texts without
            tokenizer, texts too short for one window, ids outside the model's embedding, a malformed line or
            batch.
        FileNotFoundError: a .jsonl or .txt path that does not exist.
        ImportError: a hub name without the package ``datasets``.
        OSError: a hub name that cannot be read.
    """
    for name, value in (
        ("num_samples", num_samples),
        ("max_seq_length", max_seq_length),
        ("batch_size", batch_size),
    ):
        if value < 1:
            raise ValueError(f"[load_calibration] {name} must be at least 1, got {value}")
    if isinstance(calibration, bool):
        raise ValueError(
            f"[load_calibration] calibration={calibration} names no data; pass {_KINDS} (calibration=False "
            "is for prune)"
        )
    max_seq_length = min(max_seq_length, _context_length(model) or max_seq_length)
    if calibration is None:
        sequences = sample_sequences(model, num_samples, max_seq_length, seed, progress)
        return _batched(sequences, batch_size, f"sampled from the model itself at temperature 1, seed {seed}")

    windows = _Windows(tokenizer, max_seq_length, embedding_weight(model).shape[0])
    if isinstance(calibration, (str, os.PathLike)):
        sequences, source = _from_name(calibration, windows, num_samples, seed)
    else:
        sequences, source = _from_object(calibration, windows, num_samples)
    return _batched(sequences, batch_size, source)


def document_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a document followed by the end-of-sequence token (id 0 where the tokenizer has none)."""
    return [*tokenizer(text, verbose=False).input_ids, tokenizer.eos_token_id or 0]


def read_jsonl(path: str | os.PathLike[str], keys: tuple[str, ...], operation: str) -> list[dict[str, Any]]:
    """Objects of a .jsonl file, blank lines skipped; ValueError naming the line unless each has ``keys``."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"[{operation}] {os.fspath(path)}: no such file")
    objects: list[dict[str, Any]] = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"[{operation}] {os.fspath(path)} line {number}: not JSON, {error}"
                ) from error
            for key in keys:
                if not isinstance(value, dict) or key not in value:
                    raise ValueError(
                        f"[{operation}] {os.fspath(path)} line {number}: must be an object with {key!r}"
                    )
            if "text" in keys and not isinstance(value["text"], str):
                raise ValueError(f"[{operation}] {os.fspath(path)} line {number}: 'text' must be a string")
            objects.append(value)
    return objects


def _context_length(model: torch.nn.Module) -> int | None:
    config: Any = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    length = getattr(config, "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def _batched(sequences: list[torch.Tensor], batch_size: int, source: str) -> CalibrationSet:
    batches = []
    for start in range(0, len(sequences), batch_size):
        group = sequences[start : start + batch_size]
        input_ids = torch.nn.utils.rnn.pad_sequence(group, batch_first=True)
        batch = {"input_ids": input_ids}
        lengths = torch.tensor([len(ids) for ids in group])
        if int(lengths.min()) < input_ids.shape[1]:
            batch["attention_mask"] = (torch.arange(input_ids.shape[1]) < lengths[:, None]).to(torch.int64)
        batches.append(batch)
    num_tokens = sum(len(ids) for ids in sequences)
    text = f"{len(sequences)} sequences, {num_tokens:,} tokens: {source}"
    return CalibrationSet(batches, text, len(sequences), num_tokens)


class _Windows:
    """Checks ids against the model and cuts documents into windows."""

    def __init__(self, tokenizer: Any, length: int, vocabulary: int) -> None:
        self.tokenizer, self.length, self.vocabulary = tokenizer, length, vocabulary

    def check(self, ids: torch.Tensor, cause: str) -> torch.Tensor:
        """The ids as they are; ValueError when one has no embedding."""
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= self.vocabulary):
            bad = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
            raise ValueError(
                f"[load_calibration] token ids must be in [0, {self.vocabulary - 1}], the rows of the "
                f"model's embedding, got {bad}: {cause}"
            )
        return ids

    def encode(self, text: Any) -> list[int]:
        """Checked ids of one document, the end-of-sequence token included."""
        if self.tokenizer is None:
            raise ValueError(
                "[load_calibration] texts need the model's tokenizer: pass tokenizer=…, token batches, or "
                "calibration=None to sample from the model itself"
            )
        if not isinstance(text, str):
            raise ValueError(f"[load_calibration] texts must be str, got {type(text).__name__}")
        ids = document_ids(self.tokenizer, text)
        self.check(torch.tensor(ids, dtype=torch.int64), "the tokenizer does not belong to this model")
        return ids

    def first(self, texts: Iterable[Any], count: int) -> tuple[list[torch.Tensor], int]:
        """The first ``count`` windows of the joined documents, and how many tokens were read for them."""
        ids: list[int] = []
        for text in texts:
            ids += self.encode(text)
            if len(ids) >= count * self.length:
                break
        full = min(count, len(ids) // self.length)
        used = torch.tensor(ids[: full * self.length], dtype=torch.int64)
        return list(used.view(full, self.length)), len(ids)

    def first_or_refuse(self, texts: Iterable[Any], count: int, what: str) -> list[torch.Tensor]:
        """`first`, refusing to return nothing."""
        windows, num_tokens = self.first(texts, count)
        if not windows:
            raise ValueError(
                f"[load_calibration] {what}: {num_tokens} tokens are not one window of {self.length}; give "
                "more text or lower max_seq_length"
            )
        return windows


# --- paths and hub names ------------------------------------------------------------------------------------


def _from_name(
    calibration: str | os.PathLike[str], windows: _Windows, count: int, seed: int
) -> tuple[list[torch.Tensor], str]:
    text, path = os.fspath(calibration), Path(calibration)
    if path.suffix in (".jsonl", ".txt") or path.is_file():
        if path.suffix == ".jsonl":
            return _from_jsonl(path, windows, count)
        if path.suffix != ".txt":
            raise ValueError(f"[load_calibration] {text}: a file must end in .jsonl or .txt")
        if not path.is_file():
            raise FileNotFoundError(f"[load_calibration] {text}: no such file")
        document = path.read_text(encoding="utf-8")
        return windows.first_or_refuse([document], count, text), path.name
    if not isinstance(calibration, str) or not _HUB_NAME.fullmatch(text):
        raise ValueError(
            f"[load_calibration] {text[:60]!r} is neither a .jsonl or .txt file nor the name of a data set "
            "on the hub; a text itself goes into a list"
        )
    return _from_hub(text, windows, count, seed)


def _from_jsonl(path: Path, windows: _Windows, count: int) -> tuple[list[torch.Tensor], str]:
    texts: dict[str, list[str]] = {}
    for document in read_jsonl(path, ("text",), "load_calibration"):
        texts.setdefault(str(document.get("domain", "")), []).append(document["text"])
    if not texts:
        raise ValueError(f"[load_calibration] {path}: holds no text")
    if count < len(texts):
        raise ValueError(
            f"[load_calibration] {path} has {len(texts)} domains: num_samples must be at least that, got "
            f"{count}"
        )
    sequences: list[torch.Tensor] = []
    for index, (domain, documents) in enumerate(texts.items()):
        share = count // len(texts) + (index < count % len(texts))
        what = f"{path}, domain {domain!r}" if domain else str(path)
        sequences += windows.first_or_refuse(documents, share, what)
    return sequences, path.name + (f", {len(texts)} domains" if len(texts) > 1 else "")


def _from_hub(text: str, windows: _Windows, count: int, seed: int) -> tuple[list[torch.Tensor], str]:
    name, config, split = (*text.split(":"), "", "")[:3]
    config, split = config or _HUB_CONFIGS.get(name, ""), split or "train"
    windows.encode("")  # a missing tokenizer should not wait for the network
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"[load_calibration] the data set {name!r} needs the package datasets: pip install "
            "'stun_ext[datasets]', or pass a .jsonl or .txt path, or calibration=None to sample from the "
            "model itself"
        ) from error
    picker = random.Random(seed)
    sequences: list[torch.Tensor] = []
    limit = count * _HUB_DOCUMENTS_PER_SAMPLE
    read = 0
    for read, row in enumerate(_hub_rows(datasets, name, config, split, seed), start=1):
        if "text" not in row:
            raise ValueError(f"[load_calibration] {name}: rows must have 'text', got {sorted(row)}")
        ids = windows.encode(row["text"])
        if len(ids) >= windows.length:
            start = picker.randint(0, len(ids) - windows.length)
            sequences.append(torch.tensor(ids[start : start + windows.length], dtype=torch.int64))
        if len(sequences) == count or read == limit:
            break
    if len(sequences) < count:
        raise ValueError(
            f"[load_calibration] {name}: only {len(sequences)} of {read} documents hold {windows.length} "
            f"tokens, {count} are needed; lower max_seq_length or num_samples, or pass a list of its texts, "
            "which are joined"
        )
    return sequences, f"{name}{f' ({config})' if config else ''}, {split}, random windows, seed {seed}"


def _hub_rows(datasets: Any, name: str, config: str, split: str, seed: int) -> Iterator[Mapping[str, Any]]:
    try:
        stream = datasets.load_dataset(name, config or None, split=split, streaming=True)
        yield from stream.shuffle(seed=seed, buffer_size=_HUB_SHUFFLE_BUFFER)
    except Exception as error:  # the hub client raises many unrelated types when offline
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OSError(
            f"[load_calibration] cannot read the data set {name!r} from the hub: {reason}. Without a "
            "connection pass a .jsonl or .txt path, or calibration=None to sample from the model itself"
        ) from error


# --- objects ------------------------------------------------------------------------------------------------


def _from_object(calibration: Any, windows: _Windows, count: int) -> tuple[list[torch.Tensor], str]:
    if isinstance(calibration, (torch.Tensor, np.ndarray, Mapping)):
        calibration = [calibration]
    if not isinstance(calibration, Iterable):
        raise ValueError(f"[load_calibration] calibration must be {_KINDS}; got {type(calibration).__name__}")
    columns = getattr(calibration, "column_names", None)
    if isinstance(columns, list) and not {"text", "input_ids"} & set(columns):
        raise ValueError(
            f"[load_calibration] a data set must have a 'text' or an 'input_ids' column, got {columns}"
        )
    items = iter(calibration)
    first = next(items, None)
    if first is None:
        raise ValueError(f"[load_calibration] calibration is empty; pass {_KINDS}")
    items = itertools.chain([first], items)
    label = "the data set given" if columns is not None else "the {} given"
    if _holds_text(first):
        texts = (text for item in items for text in _texts(item))
        return windows.first_or_refuse(texts, count, "the texts given"), label.format("texts")
    rows = (row for index, item in enumerate(items) for row in _rows(item, index))
    sequences = [
        windows.check(row[: windows.length], "these ids do not belong to this model")
        for row in itertools.islice((row for row in rows if len(row)), count)
    ]
    if not sequences:
        raise ValueError("[load_calibration] the token batches given hold no token")
    return sequences, label.format("token batches")


def _holds_text(item: Any) -> bool:
    if isinstance(item, Mapping):
        return "input_ids" not in item and "text" in item
    if isinstance(item, (list, tuple)):
        return bool(item) and isinstance(item[0], str)
    return isinstance(item, str)


def _texts(item: Any) -> Iterator[Any]:
    """Documents of one item of a text source: a str, a list of them, or a mapping with such a ``text``."""
    value = item.get("text") if isinstance(item, Mapping) else item
    if isinstance(value, (list, tuple)):
        yield from value
    else:
        yield value  # anything but str is refused, with its type, when it is encoded


def _rows(item: Any, index: int) -> Iterator[torch.Tensor]:
    """The sequences of one item of a token source, int64 ``[T]`` each, masked positions dropped."""
    mask = None
    if isinstance(item, Mapping):
        if "input_ids" not in item:
            raise ValueError(
                f"[load_calibration] item {index}: must have 'input_ids' or 'text', got {sorted(item)}"
            )
        ids, mask = _as_ids(item["input_ids"], index), item.get("attention_mask")
    elif isinstance(item, (list, tuple)) and item and isinstance(item[0], torch.Tensor) and item[0].dim() > 0:
        ids = _as_ids(item[0], index)  # (inputs, targets)
    else:
        ids = _as_ids(item, index)
    ids = ids[None] if ids.dim() == 1 else ids
    if mask is None:
        yield from ids
        return
    keep = torch.as_tensor(mask).cpu() != 0
    keep = keep[None] if keep.dim() == 1 else keep
    if keep.shape != ids.shape:
        raise ValueError(
            f"[load_calibration] item {index}: attention_mask must have the shape of input_ids "
            f"{list(ids.shape)}"
        )
    for row, kept in zip(ids, keep, strict=True):
        yield row[kept]


def _as_ids(value: Any, index: int) -> torch.Tensor:
    try:
        ids = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"[load_calibration] item {index}: not token ids ({error}); calibration must be {_KINDS}"
        ) from error
    if ids.is_floating_point() or ids.dtype == torch.bool or ids.is_complex() or ids.dim() not in (1, 2):
        if ids.numel() == 0 and ids.dim() == 1:  # an empty list has no integer dtype
            return ids.to(torch.int64)
        raise ValueError(
            f"[load_calibration] item {index}: token ids must be integers of shape [T] or [N, T], "
            f"got {ids.dtype} {list(ids.shape)}"
        )
    return ids.detach().to("cpu", torch.int64)

# SPDX-License-Identifier: Apache-2.0
"""Tiny random checkpoints with tokenizers, and ways to run the command line on them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging
from typer.testing import CliRunner, Result

from stun_ext.cli import app

TEXT = "In the beginning the tables were empty, and every expert waited for the tokens that would come. " * 40

Invoke = Callable[..., Result]


@pytest.fixture(scope="session")
def olmoe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 layers of 8 experts, top-2, random bfloat16 weights, with a tokenizer. Do not write into it."""
    folder = tmp_path_factory.mktemp("models") / "olmoe"
    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=320, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_experts=8, num_experts_per_tok=2,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    OlmoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def deepseek(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only the config of a DeepSeek-V3: 3 layers, one dense; 16 experts in 4 groups, a shared one."""
    folder = tmp_path_factory.mktemp("models") / "deepseek"
    config = DeepseekV3Config(
        vocab_size=64, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=2, n_routed_experts=16, num_experts_per_tok=4, n_group=4,
        topk_group=2, n_shared_experts=1, first_k_dense_replace=1, q_lora_rank=8, kv_lora_rank=8,
        qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8,
    )  # fmt: skip
    config.architectures = [DeepseekV3ForCausalLM.__name__]
    config.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only the config of a dense Llama."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    config.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def invoke() -> Iterator[Invoke]:
    """Runs the command line inside this process; what it silences is restored."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    yield lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])
    logging.set_verbosity(verbosity)
    if bar:
        logging.enable_progress_bar()


@pytest.fixture
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line in a process of its own."""

    def start(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "stun_ext.cli", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)

    return start


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")

# SPDX-License-Identifier: Apache-2.0
"""The demo runs on what travels with the package, and proves what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stun_ext import demo


def test_the_data_is_there() -> None:
    assert (demo.MODEL / "model.safetensors").stat().st_size > 10_000_000
    domains: dict[Path, set[str]] = {}
    for path in (demo.CALIBRATION, demo.VALIDATION):
        domains[path] = {json.loads(line)["domain"] for line in path.read_text(encoding="utf-8").splitlines()}
    assert domains[demo.CALIBRATION] == domains[demo.VALIDATION] | {"wordmath"}
    problems = [json.loads(line) for line in demo.WORDMATH.read_text(encoding="utf-8").splitlines()]
    assert len(problems) >= 200
    assert all(problem["solution"].strip().endswith(f"#### {problem['answer']}") for problem in problems)


def test_an_existing_folder_is_refused_before_any_work(invoke, tmp_path: Path) -> None:
    result = invoke("demo", "--keep", tmp_path)
    assert result.exit_code == 2
    assert f"{tmp_path} exists" in result.stderr
    assert result.stdout == ""


@pytest.mark.slow
def test_quick_demo(run, tmp_path: Path) -> None:
    done = run("demo", "--quick", "--json", "--keep", tmp_path / "kept")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    dense, wanda, ours = found["rows"]
    assert [row["recipe"] for row in found["rows"]] == ["dense", "Wanda alone", "default recipe"]
    assert dense["sparsity"] == 0
    assert wanda["sparsity"] == pytest.approx(0.65, abs=1e-3)
    assert ours["sparsity"] == pytest.approx(0.65, abs=1e-3)
    assert dense["accuracy"] > 0.9
    assert dense["perplexity"] < ours["perplexity"] < wanda["perplexity"]
    assert ours["accuracy"] >= wanda["accuracy"]
    assert found["stock"]["imported_stun_ext"] is False
    assert found["stock"]["largest_logit_difference"] == 0
    config = json.loads((tmp_path / "kept" / "config.json").read_text())
    assert 4 * config["num_experts"] == ours["experts_kept"] == 4 * found["stock"]["experts_per_layer"]

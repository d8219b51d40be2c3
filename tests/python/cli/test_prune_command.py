# SPDX-License-Identifier: Apache-2.0
"""prune writes what it says, refuses before it works, and leaves no half checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import stun_ext

# A small request that needs neither data nor time.
QUICK = ["--no-calibration", "--sparsity", "0.5", "--expert-sparsity", "0.25", "--device", "cpu"]


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_out_holds_everything(invoke, olmoe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = digest(olmoe)
    result = invoke("prune", olmoe, out, *QUICK)
    assert result.exit_code == 0, result.stderr
    assert f"written to {out}" in result.stdout
    assert digest(olmoe) == before
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "stun_report.json", "README.md"} <= names
    assert (out / "tokenizer.json").read_bytes() == (olmoe / "tokenizer.json").read_bytes()
    report = json.loads((out / "stun_report.json").read_text())
    assert report["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert [len(layer["kept"]) for layer in report["layers"]] == [6, 6]
    assert json.loads((out / "config.json").read_text())["num_experts"] == 6
    # Counted on the file, with nothing of ours: the weights of kept experts are half zero in total.
    weights = [tensor for name, tensor in load_file(out / "model.safetensors").items() if ".experts." in name]
    total, left = 2 * 8 * 3 * 32 * 16, sum(tensor.numel() for tensor in weights)
    zeros = sum(int((tensor == 0).sum()) for tensor in weights)
    assert (total - left + zeros) / total == pytest.approx(0.5, abs=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_flags_override_the_recipe_file(invoke, olmoe: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    stun_ext.Recipe(
        sparsity=0.6, criterion="random", linkage="average", weight_method="magnitude", seed=7
    ).save(recipe)
    result = invoke(
        "prune", olmoe, tmp_path / "out", "--recipe", recipe, "--sparsity", "0.3", "--similarity", "1,0.5",
        "--scope", "experts,attention", "--no-calibration", "--dry-run", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    used = json.loads(result.stdout)["recipe"]
    assert used["sparsity"] == 0.3
    assert used["similarity"] == [1.0, 0.5]
    assert used["scope"] == ["experts", "attention"]
    assert (used["criterion"], used["linkage"], used["seed"]) == ("random", "average", 7)


def test_dry_run_decides_the_same_and_writes_nothing(
    invoke, olmoe: Path, tmp_path: Path, text_file: Path
) -> None:
    out = tmp_path / "out"
    asked = ["--calibration", text_file, "--num-calibration-samples", "4", "--max-seq-length", "32", "--json"]
    asked += ["--expert-sparsity", "0.5", "--device", "cpu"]
    dry = invoke("prune", olmoe, out, *asked, "--dry-run")
    assert dry.exit_code == 0, dry.stderr
    assert list(tmp_path.iterdir()) == []
    wet = invoke("prune", olmoe, out, *asked)
    assert wet.exit_code == 0, wet.stderr
    dry_report, wet_report = json.loads(dry.stdout), json.loads(wet.stdout)
    assert dry_report["out"] is None
    assert wet_report["out"] == str(out)
    assert dry_report["dry_run"]
    assert not wet_report["dry_run"]
    kept = [[layer["kept"] for layer in report["layers"]] for report in (dry_report, wet_report)]
    assert kept[0] == kept[1]
    assert str(text_file) in wet_report["calibration"] or text_file.name in wet_report["calibration"]


def test_force_replaces_and_its_absence_refuses(invoke, olmoe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert invoke("prune", olmoe, out, *QUICK).exit_code == 0
    before = digest(out)
    refused = invoke("prune", olmoe, out, *QUICK, "--expert-sparsity", "0.5")
    assert refused.exit_code == 2
    assert f"{out} exists" in refused.stderr
    assert "loading" not in refused.stderr
    assert digest(out) == before
    assert invoke("prune", olmoe, out, *QUICK, "--expert-sparsity", "0.5", "--force").exit_code == 0
    assert json.loads((out / "config.json").read_text())["num_experts"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_model_itself_is_never_replaced(invoke, olmoe: Path) -> None:
    before = digest(olmoe)
    result = invoke("prune", olmoe, olmoe, *QUICK, "--force")
    assert result.exit_code == 2
    assert digest(olmoe) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sparsity", "1.5"], "[Recipe] sparsity must be in [0, 1), got 1.5"),
        (["--criterion", "best"], "[Recipe] criterion must be one of"),
        (["--similarity", "1"], "similarity must be two numbers"),
        (["--similarity", "1,x"], "similarity must be two numbers"),
        (["--scope", "router"], "scope must name some of"),
        (["--pattern", "4:2"], "pattern must be 'n:m'"),
        (["--recipe", "missing.yaml"], "no such file: missing.yaml"),
        (["--calibration", "missing.jsonl"], "missing.jsonl"),
        (["--calibration", "a.txt", "--no-calibration"], "--no-calibration contradicts --calibration a.txt"),
        (["--device", "toaster"], "device must be auto, cpu, cuda or cuda:N, got 'toaster'"),
        (["--dtype", "int3"], "dtype must be one of"),
        (["--no-calibration", "--criterion", "reap"], "need calibration"),
        (["--no-calibration", "--sparsity", "0.2", "--expert-sparsity", "0.5"], "sparsity"),
        (["--no-calibration", "--expert-sparsity", "0.9"], "expert"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(
    invoke, olmoe: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = invoke("prune", olmoe, tmp_path / "out", "--device", "cpu", *arguments)
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_there_is_refused(invoke, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, message in [
        ("missing", "no such directory"),
        ("empty", "no config.json"),
        ("file", "is a file"),
    ]:
        for command in (
            ["prune", tmp_path / name, tmp_path / "out"],
            ["inspect", tmp_path / name],
            ["eval", tmp_path / name],
        ):
            result = invoke(*command)
            assert result.exit_code == 2, (command, result.stderr)
            assert message in result.stderr


def test_a_failure_while_working_is_another_code(invoke, olmoe: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in olmoe.iterdir():
        (broken / path.name).write_bytes(path.read_bytes()[: 2000 if path.suffix == ".safetensors" else None])
    result = invoke("prune", broken, tmp_path / "out", *QUICK)
    assert result.exit_code == 1
    assert "error:" in result.stderr
    assert not (tmp_path / "out").exists()


def test_json_is_all_there_is_on_stdout(run, olmoe: Path, tmp_path: Path) -> None:
    """In a real process, with the model sampling its own calibration text and every library talking."""
    done = run(
        "prune", olmoe, tmp_path / "out", "--json", "--num-calibration-samples", "2", "--max-seq-length",
        "16", "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "out": str(tmp_path / "out"), **json.loads((tmp_path / "out" / "stun_report.json").read_text())
    }  # fmt: skip
    assert "loading" in done.stderr
    assert "calibrate" in done.stderr


def test_quiet_says_nothing_but_the_result(run, olmoe: Path, tmp_path: Path) -> None:
    done = run("prune", olmoe, tmp_path / "out", *QUICK, "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "experts removed" in done.stdout


def test_a_stock_process_loads_the_result(invoke, olmoe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert invoke("prune", olmoe, out, *QUICK).exit_code == 0
    program = (
        "import sys, torch\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "ids = tokenizer('every expert waited', return_tensors='pt').input_ids\n"
        "torch.save((ids, model(ids).logits.detach()), sys.argv[2])\n"
        "assert model.model.layers[1].mlp.experts.gate_up_proj.shape[0] == 6\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'stun_ext'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, out, tmp_path / "logits.pt"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
    ids, logits = torch.load(tmp_path / "logits.pt")
    with torch.no_grad():
        ours = stun_ext.from_pretrained(out)(ids).logits
    assert torch.equal(ours, logits)


def test_ragged_counts_are_written_and_inspected(
    invoke, olmoe: Path, tmp_path: Path, text_file: Path
) -> None:
    out = tmp_path / "out"
    result = invoke(
        "prune", olmoe, out, "--per-layer", "global", "--criterion", "similarity", "--expert-sparsity", "0.4",
        "--calibration", text_file, "--num-calibration-samples", "4", "--max-seq-length", "32",
        "--device", "cpu", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    kept = [len(layer["kept"]) for layer in json.loads(result.stdout)["layers"]]
    found = json.loads(invoke("inspect", out, "--json").stdout)
    assert [layer["num_experts"] for layer in found["layers"]] == kept
    tensors = load_file(out / "model.safetensors")
    assert found["parameters"]["experts"] == sum(t.numel() for n, t in tensors.items() if ".experts." in n)
    if len(set(kept)) > 1:
        assert "different numbers of experts" in found["refusals"][0]


def test_ctrl_c_is_130_and_leaves_nothing(olmoe: Path, tmp_path: Path) -> None:
    process = _paused_before_rename(olmoe, tmp_path / "out")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr
    assert list(tmp_path.iterdir()) == []


def test_a_kill_leaves_no_half_checkpoint(invoke, olmoe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = _paused_before_rename(olmoe, out)
    process.kill()
    process.wait(timeout=60)
    assert not out.exists()
    left = list(tmp_path.iterdir())
    assert left  # it was killed while a checkpoint was being written ...
    assert all(path.name.startswith(".out.partial-") for path in left)
    assert invoke("prune", olmoe, out, *QUICK).exit_code == 0  # ... which does not stand in the way


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_nothing_or_all(olmoe: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    start = time.perf_counter()
    subprocess.run(_command(olmoe, reference), check=True, capture_output=True)
    duration = time.perf_counter() - start
    for moment in range(6):
        out = tmp_path / f"out{moment}"
        process = subprocess.Popen(_command(olmoe, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(duration * (0.75 + 0.05 * moment))
        process.kill()
        process.wait()
        if out.exists():
            assert digest(out)["model.safetensors"] == digest(reference)["model.safetensors"]
            assert set(digest(out)) == set(digest(reference))


def _command(model: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "stun_ext.cli", "prune", str(model), str(out), *QUICK]


def _paused_before_rename(model: Path, out: Path) -> subprocess.Popen[str]:
    """The command line in a process that stops for good where the complete checkpoint would get its name."""
    program = (
        "import os, signal, sys, time\n"
        # A background job of a shell ignores Ctrl-C, and so do its children unless they say otherwise.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from stun_ext.cli import main\n"
        "def pause(*paths, **options):\n"
        f"    if str(paths[1]) == {str(out)!r}:\n"
        "        print('RENAMES', file=sys.stderr, flush=True)\n"
        "        time.sleep(600)\n"
        "    return rename(*paths, **options)\n"
        "rename, os.rename, os.replace = os.rename, pause, pause\n"
        f"sys.argv = ['stun-ext', *{_command(model, out)[3:]!r}]\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", program],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TQDM_DISABLE": "1"},
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "RENAMES" in line:
            return process
    raise AssertionError("".join(said))

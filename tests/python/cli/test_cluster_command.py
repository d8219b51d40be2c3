# SPDX-License-Identifier: Apache-2.0
"""stun-ext cluster: the clusters of cluster_router, for files and models; outputs, exit codes, interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import stun_ext

ROWS = np.random.default_rng(1).standard_normal((50, 7)).astype(np.float32)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    np.save(tmp_path / "rows.npy", ROWS)
    return tmp_path / "rows.npy"


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--k", "9"],
        ["--threshold", "3.5"],
        ["--k", "9", "--linkage", "ward"],
        ["--k", "9", "--linkage", "star"],
        ["--threshold", "3.5", "--linkage", "star"],
        ["--k", "9", "--memory-limit", "200MB"],
    ],
)
def test_a_file(invoke, rows: Path, flags: list[str]) -> None:
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    expected = stun_ext.cluster_router(
        ROWS,
        n_clusters=int(given["--k"]) if "--k" in given else None,
        threshold=float(given["--threshold"]) if "--threshold" in given else None,
        linkage=given.get("--linkage", "complete"),
    )
    result = invoke("cluster", rows, *flags, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    (found,) = document["routers"]
    assert document["source"] == found.pop("name") == str(rows)
    assert found.pop("seconds") >= 0
    wanted = expected.to_dict()
    del wanted["name"]
    assert found == wanted
    text = invoke("cluster", rows, *flags).stdout
    assert f"{given.get('--linkage', 'complete')} linkage" in text
    assert f" {expected.n_clusters} " in text


def test_a_model_and_its_tensors_and_arrays_agree(invoke, olmoe: Path, tmp_path: Path) -> None:
    weights = load_file(olmoe / "model.safetensors")
    document = json.loads(invoke("cluster", olmoe, "--k", 3, "--json", "--out", tmp_path / "a.npz").stdout)
    assert [found["layer"] for found in document["routers"]] == [0, 1]
    with np.load(tmp_path / "a.npz") as arrays:
        saved = {name: arrays[name] for name in arrays}
    assert len(saved) == 4
    for found in document["routers"]:
        name = f"model.layers.{found['layer']}.mlp.gate.weight"
        assert found["name"] == name
        expected = stun_ext.cluster_router(weights[name], n_clusters=3)
        one = json.loads(invoke("cluster", f"{olmoe}/model.safetensors:{name}", "--k", 3, "--json").stdout)
        assert found["labels"] == one["routers"][0]["labels"] == expected.labels.tolist()
        assert found["heights"] == one["routers"][0]["heights"]
        assert saved[f"{name}/labels"].tolist() == expected.labels.tolist()
        assert np.array_equal(saved[f"{name}/Z"], expected.Z)
    text = invoke("cluster", olmoe, "--k", 3, "--layers", "1").stdout
    assert [line.split()[1] for line in text.splitlines() if line.startswith("│")] == ["1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{rows}", "--k", "51"], "n_clusters must be in [1, 50], got 51 ({rows})"),
        (["{rows}", "--k", "3", "--threshold", "1"], "n_clusters and threshold exclude each other"),
        (["{rows}", "--linkage", "star"], '"star" needs n_clusters or threshold'),
        (["{rows}", "--linkage", "median"], "linkage must be one of single"),
        (["{rows}", "--memory-limit", "many"], "--memory-limit is a size such as 500MB or 1GiB, got 'many'"),
        (["{rows}", "--memory-limit", "0"], "--memory-limit is a size"),
        (["{rows}", "--memory-limit", "1KB"], "memory_limit must be at least"),
        (["{rows}", "--layers", "1"], "--layers is for models, got a file of rows"),
        (["{olmoe}", "--layers", "3-1"], "--layers is a list such as 0,3,8-11, got '3-1'"),
        (["{olmoe}", "--layers", "0-2"], "layers must be of those with experts, [0, 1], got 2"),
        (["{rows}", "--out", "{folder}/a.csv"], "a .npz or .json file is legal"),
        (["{rows}", "--plot", "{folder}/a.jpeg"], "a picture is one of .png, .pdf, .svg"),
        (["{rows}", "--plot", "{folder}/none/a.png"], "no such directory: {folder}/none"),
        (["{folder}/none.npy"], "no such file: {folder}/none.npy"),
        (["{folder}/none"], "no such directory"),
        (["{folder}"], "holds no config.json"),
        (["{olmoe}/config.json"], "a .npy or .safetensors file is legal"),
        (["{olmoe}/model.safetensors:gate"], "model.safetensors has no tensor 'gate'"),
        (["{llama}"], "has no safetensors files; name the tensor itself: FILE.safetensors:TENSOR"),
    ],
)
def test_refusals(invoke, rows: Path, olmoe: Path, llama: Path, arguments: list[str], words: str) -> None:
    places = {"rows": rows, "olmoe": olmoe, "llama": llama, "folder": rows.parent}
    before = sorted(rows.parent.rglob("*"))
    result = invoke("cluster", *(argument.format(**places) for argument in arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert words.format(**places) in result.stderr
    assert sorted(rows.parent.rglob("*")) == before


def test_files_are_written(invoke, rows: Path) -> None:
    out, plot = rows.parent / "a.json", rows.parent / "a.png"
    result = invoke("cluster", rows, "--k", 9, "--out", out, "--plot", plot, "--json")
    assert result.exit_code == 0, result.stderr
    written, printed = json.loads(out.read_text()), json.loads(result.stdout)
    assert written == printed
    assert printed["routers"][0]["heights"]["merges"] == 49  # a picture shows the whole tree
    first = plot.read_bytes()
    assert first.startswith(b"\x89PNG\r\n\x1a\n")
    assert invoke("cluster", rows, "--k", 12, "--plot", plot).exit_code == 0
    assert plot.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") and plot.read_bytes() != first
    invoke("cluster", rows, "--k", 9, "--out", rows.parent / "a.npz")
    with np.load(rows.parent / "a.npz") as arrays:
        assert sorted(arrays) == ["Z", "labels"] and arrays["Z"].shape == (41, 4)
    names = sorted(path.name for path in rows.parent.iterdir())
    assert names == ["a.json", "a.npz", "a.png", "rows.npy"]


def test_pictures_of_a_model(invoke, olmoe: Path, tmp_path: Path) -> None:
    for linkage in ("average", "star"):
        result = invoke(
            "cluster", olmoe, "--k", 4, "--linkage", linkage, "--plot", tmp_path / f"{linkage}.svg"
        )
        assert result.exit_code == 0, result.stderr
        assert (tmp_path / f"{linkage}.svg").read_text().startswith("<?xml")


def test_stdout_is_the_result_alone(run, olmoe: Path, tmp_path: Path) -> None:
    command = ("cluster", olmoe, "--k", 3, "--plot", tmp_path / "a.png", "--json")
    loud, quiet = run(*command), run(*command, "--quiet")
    assert loud.returncode == quiet.returncode == 0
    loud_routers, quiet_routers = (json.loads(done.stdout)["routers"] for done in (loud, quiet))
    for one, other in zip(loud_routers, quiet_routers, strict=True):
        assert one["labels"] == other["labels"]
    assert "finding the routers" in loud.stderr and "100/100" in loud.stderr
    assert quiet.stderr == ""


def test_ctrl_c(tmp_path: Path) -> None:
    rows, out, plot = tmp_path / "rows.npy", tmp_path / "a.npz", tmp_path / "a.png"
    np.save(rows, np.random.default_rng(0).standard_normal((20_000, 1024)).astype(np.float32))
    command = ["cluster", rows, "--k", 5, "--memory-limit", "300MB", "--out", out, "--plot", plot]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-m", "stun_ext.cli", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # What a shell starts in the background inherits an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "clustering 20,000 rows of 1,024\n"
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert stderr.splitlines()[-1] == "interrupted" and "Traceback" not in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["rows.npy"]

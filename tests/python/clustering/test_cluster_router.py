# SPDX-License-Identifier: Apache-2.0
"""cluster_router against SciPy and the operations it is made of; early ends, files, arguments, saving."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import scipy.cluster.hierarchy as hierarchy
import torch

import stun_ext
from stun_ext import ops
from stun_ext.clustering import LINKAGES

TREES = [linkage for linkage in LINKAGES if linkage != "star"]
ROWS = np.random.default_rng(5).standard_normal((90, 12)).astype(np.float32)


def lowest_member(labels: np.ndarray) -> np.ndarray:
    """SciPy's labels as the lowest row of each cluster."""
    return np.array([np.flatnonzero(labels == label)[0] for label in labels])


def after_merges(Z: np.ndarray, count: int) -> np.ndarray:
    """Labels after the first merges (SciPy's cut_tree mistakes trees whose heights decrease)."""
    n = len(Z) + 1
    members = [{row} for row in range(n)]
    for first, second in Z[:, :2].astype(int):
        members.append(members[first] | members[second])
    labels = np.arange(n)
    for merged in members[n : n + count]:
        labels[sorted(merged)] = min(merged)
    return labels


@pytest.mark.parametrize("linkage", TREES)
def test_labels_are_scipys(linkage: str) -> None:
    Z = hierarchy.linkage(ROWS.astype(np.float64), linkage)
    for n_clusters in (1, 2, 17, 89, 90):
        found = stun_ext.cluster_router(ROWS, n_clusters=n_clusters, linkage=linkage)
        assert found.n_clusters == n_clusters
        assert np.array_equal(found.labels, after_merges(Z, 90 - n_clusters))
    for threshold in np.quantile(Z[:, 2], [0, 0.3, 0.9, 1]) * (1 + 1e-6):
        found = stun_ext.cluster_router(ROWS, threshold=threshold, linkage=linkage)
        expected = lowest_member(hierarchy.fcluster(Z, threshold, "distance"))
        assert np.array_equal(found.labels, expected)
        assert found.threshold == threshold


@pytest.mark.parametrize("linkage", TREES)
def test_an_early_end_and_little_memory_change_nothing(linkage: str) -> None:
    rows = np.random.default_rng(6).standard_normal((600, 12)).astype(np.float32)
    whole = stun_ext.cluster_router(rows, linkage=linkage)
    assert (
        whole.n_clusters == 1 and whole.is_full and whole.Z is not None and whole.threshold == whole.Z[-1, 2]
    )
    middle = float(whole.Z[400, 2])
    limit = 400_000 + 530_000 * stun_ext.ops.num_threads()  # what average linkage needs at least
    for request in ({"n_clusters": 120}, {"threshold": middle}):
        early = stun_ext.cluster_router(rows, linkage=linkage, **request)
        assert early.Z is not None
        assert early.is_full == (linkage == "centroid" and "threshold" in request)  # its heights can decrease
        again = stun_ext.cluster_router(rows, linkage=linkage, memory_limit=limit, **request)
        full = stun_ext.cluster_router(rows, linkage=linkage, full_tree=True, **request)
        assert full.is_full
        for other in (again, full, whole.cut(**request)):
            assert np.array_equal(early.labels, other.labels)
            assert other.threshold == pytest.approx(early.threshold, rel=1e-9)


def test_what_a_result_says() -> None:
    rows = np.array([[0.0], [10.0], [0.5], [10.25], [30.0]])
    found = stun_ext.cluster_router(rows, n_clusters=3)
    assert found.labels.dtype == np.int64 and found.labels.tolist() == [0, 1, 0, 1, 4]
    assert (found.n, found.d, found.n_clusters, found.linkage) == (5, 1, 3, "complete")
    assert found.threshold == 0.5
    assert found.sizes.tolist() == [2, 2, 1]
    assert found.members() == {0: [0, 2], 1: [1, 3], 4: [4]}
    assert found.Z is not None and found.Z[:, 2].tolist() == [0.25, 0.5]
    assert stun_ext.cluster_router(rows, n_clusters=5).threshold is None  # nothing merged
    alone = stun_ext.cluster_router(rows[:1])
    assert alone.labels.tolist() == [0] and alone.is_full and alone.threshold is None


def test_star() -> None:
    D = ops.pairwise_distances(ROWS)
    for n_clusters in (1, 30, 90):
        labels, threshold = ops.star_clusters_count(D, n_clusters)
        found = stun_ext.cluster_router(ROWS, n_clusters=n_clusters, linkage="star")
        assert np.array_equal(found.labels, labels) and found.threshold == threshold
        assert found.Z is None and not found.is_full
    threshold = float(np.median(D))
    found = stun_ext.cluster_router(ROWS, threshold=threshold, linkage="star")
    assert np.array_equal(found.labels, ops.star_clusters_rows(ROWS, threshold))
    assert found.threshold == threshold and 1 < found.n_clusters < 90
    assert (
        json.loads(stun_ext.cluster_router(ROWS, n_clusters=90, linkage="star").to_json())["threshold"]
        is None
    )
    with pytest.raises(ValueError, match=r"full_tree=True \(\"star\" has no tree\)"):
        found.cut(n_clusters=3)


def test_star_by_number_is_refused_where_its_distances_do_not_fit() -> None:
    rows = np.zeros((20_000, 1), np.float32)
    with pytest.raises(
        ValueError, match=r"20,000 rows take 9\.6 GB, memory_limit is 2\.1; raise it, or give"
    ):
        stun_ext.cluster_router(rows, n_clusters=5, linkage="star")
    with pytest.raises(ValueError, match=r"90 rows take 0\.0 GB"):
        stun_ext.cluster_router(ROWS, n_clusters=5, linkage="star", memory_limit=1000)
    with pytest.raises(ValueError, match=r"n <= 65,536 rows: 70,000 rows take"):
        stun_ext.cluster_router(np.zeros((70_000, 1)), n_clusters=5, linkage="star", memory_limit=1 << 50)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_kinds_of_rows(dtype: str, tmp_path: Path) -> None:
    """Tensor, array, file, and bits give one result, and NumPy whatever came in."""
    tensor = torch.from_numpy(ROWS).to(getattr(torch, dtype))
    expected = stun_ext.cluster_router(tensor.double().numpy(), n_clusters=20)
    bits = tensor.view(torch.uint16).numpy() if dtype == "bfloat16" else None
    array = tensor.numpy() if bits is None else bits.view(ml_dtypes.bfloat16)
    np.save(tmp_path / "rows.npy", array)
    for found in (
        stun_ext.cluster_router(tensor.requires_grad_(), n_clusters=20),
        stun_ext.cluster_router(array, n_clusters=20),
        stun_ext.cluster_router(tmp_path / "rows.npy", n_clusters=20),
        *([] if bits is None else [stun_ext.cluster_router(bits, n_clusters=20, dtype="bfloat16")]),
    ):
        assert isinstance(found.labels, np.ndarray) and isinstance(found.Z, np.ndarray)
        assert np.array_equal(found.labels, expected.labels) and np.array_equal(found.Z, expected.Z)
    assert stun_ext.cluster_router(tmp_path / "rows.npy").name == str(tmp_path / "rows.npy")


def test_a_models_routers(demo_model: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(demo_model / "model.safetensors")
    for layer, router in enumerate(stun_ext.model_routers(demo_model)):
        found = stun_ext.cluster_router(router, n_clusters=20)
        by_name = stun_ext.cluster_router(f"{demo_model}/model.safetensors:{router.name}", n_clusters=20)
        loaded = stun_ext.cluster_router(weights[f"model.layers.{layer}.mlp.gate.weight"], n_clusters=20)
        assert np.array_equal(found.labels, loaded.labels) and np.array_equal(by_name.labels, loaded.labels)
        assert found.layer == layer and found.name == f"model.layers.{layer}.mlp.gate.weight"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            {"linkage": "median"},
            "linkage must be one of single, complete, average, ward, centroid, star, got",
        ),
        ({"n_clusters": 2, "threshold": 1.0}, "n_clusters and threshold exclude each other"),
        ({"threshold": float("nan")}, "threshold must be a number, got nan"),
        ({"n_clusters": 0}, r"n_clusters must be in \[1, 90\], got 0"),
        ({"n_clusters": 91}, r"n_clusters must be in \[1, 90\], got 91"),
        ({"n_clusters": 91, "linkage": "star"}, r"n_clusters must be in \[1, 90\], got 91"),
        ({"linkage": "star"}, '"star" needs n_clusters or threshold, got neither'),
        ({"linkage": "star", "n_clusters": 2, "full_tree": True}, '"star" has no tree, got full_tree=True'),
        ({"memory_limit": 0}, "memory_limit must be a positive number of bytes"),
        ({"memory_limit": 10}, "memory_limit"),
    ],
)
def test_arguments_are_refused(arguments: dict[str, object], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        stun_ext.cluster_router(ROWS, **arguments)  # type: ignore[arg-type]


def test_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"router must be a matrix \[n, d\], got shape \[12\]"):
        stun_ext.cluster_router(ROWS[0])
    with pytest.raises(TypeError, match=r"router must be a matrix \[n, d\], got list"):
        stun_ext.cluster_router(ROWS.tolist())
    with pytest.raises(TypeError):
        stun_ext.cluster_router(np.ones((3, 2), np.int32))
    with pytest.raises(ValueError, match="must hold values, got a tensor on the meta device"):
        stun_ext.cluster_router(torch.empty(3, 2, device="meta"))
    with pytest.raises(ValueError, match=r"for a model: model_routers"):
        stun_ext.cluster_router("some/model")
    with pytest.raises(ValueError, match="row 1"):
        stun_ext.cluster_router(np.array([[1.0], [np.nan]]))
    with pytest.raises(ValueError, match="needs a full tree"):
        stun_ext.cluster_router(ROWS, n_clusters=5).cut(n_clusters=4)


@pytest.mark.parametrize("request_", [{"linkage": "complete"}, {"linkage": "star", "threshold": 22.0}])
def test_progress_and_cancellation(request_: dict[str, object]) -> None:
    rows = np.random.default_rng(0).standard_normal((3000, 300)).astype(np.float32)
    told: list[float] = []
    found = stun_ext.cluster_router(rows, memory_limit=120 << 20, progress=told.append, **request_)  # type: ignore[arg-type]
    assert found.n == 3000 and told == sorted(told) and all(0 <= fraction <= 1 for fraction in told)
    with pytest.raises(RuntimeError, match="stopped by its progress"):
        stun_ext.cluster_router(rows, memory_limit=20 << 20, progress=lambda _: False, linkage="complete")


def test_saving(tmp_path: Path) -> None:
    found = stun_ext.cluster_router(ROWS, n_clusters=20)
    found.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as arrays:
        assert sorted(arrays) == ["Z", "labels"]
        assert np.array_equal(arrays["labels"], found.labels) and np.array_equal(arrays["Z"], found.Z)
    found.save(tmp_path / "a.json")
    document = json.loads((tmp_path / "a.json").read_text())
    assert document == found.to_dict() == json.loads(found.to_json())
    assert document["labels"] == found.labels.tolist() and sum(document["sizes"]) == 90
    assert document["heights"]["merges"] == 70 and document["heights"]["max"] == document["threshold"]
    stun_ext.cluster_router(ROWS, n_clusters=20, linkage="star").save(tmp_path / "a.npz")  # replaces
    with np.load(tmp_path / "a.npz") as arrays:
        assert sorted(arrays) == ["labels"]
    with pytest.raises(ValueError, match=r"a \.npz or \.json file is legal, got '.*a\.csv'"):
        found.save(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError):
        found.save(tmp_path / "none" / "a.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.npz"]


def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    from stun_ext.files import replaced

    (tmp_path / "a.npz").write_bytes(b"old")

    def interrupted() -> None:
        with replaced(tmp_path / "a.npz") as temporary:
            temporary.write_bytes(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.npz", b"old")]


def test_arrays_need_neither_torch_nor_matplotlib() -> None:
    program = (
        "import sys, numpy, stun_ext\n"
        "stun_ext.cluster_router(numpy.eye(4), n_clusters=2)\n"
        "print(sorted({'torch', 'transformers', 'matplotlib', 'scipy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

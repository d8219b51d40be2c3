# SPDX-License-Identifier: Apache-2.0
"""Pictures show the tree that was found, coloured by its clusters, and depend on the cut."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.cluster.hierarchy as hierarchy
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

import stun_ext
from stun_ext.plots import draw_clusters, tree_layout

ROWS = np.random.default_rng(3).standard_normal((40, 6))
GREY = "#b0b0b0"


def coloured_links(panel: object) -> list[tuple[np.ndarray, str]]:
    return [
        (segment, to_hex(colour))
        for lines in panel.collections  # type: ignore[attr-defined]
        if isinstance(lines, LineCollection)
        for segment, colour in zip(lines.get_segments(), lines.get_colors(), strict=True)
    ]


@pytest.mark.parametrize("linkage", ["single", "complete", "average", "ward", "centroid"])
def test_links_are_scipys(linkage: str) -> None:
    """SciPy orders the branches otherwise, so corners are compared by the leaves they stand over."""
    Z = hierarchy.linkage(ROWS, linkage)
    order, links, clusters = tree_layout(Z, np.zeros(40, np.int64))
    assert sorted(order) == list(range(40)) and set(clusters) == {0}
    assert order[0] == 0
    heights = sorted(sorted(link[:, 1].tolist()) for link in links)
    expected = hierarchy.dendrogram(Z, no_plot=True)["dcoord"]
    np.testing.assert_allclose(heights, sorted(sorted(corners) for corners in expected))
    members = [{row} for row in range(40)]
    for merge, (first, second) in enumerate(Z[:, :2].astype(int)):
        members.append(members[first] | members[second])
        left, right = links[merge, 0, 0], links[merge, 2, 0]
        for position, node in ((left, first), (right, second)):
            under = [place for place, leaf in enumerate(order) if leaf in members[node]]
            assert under == list(range(under[0], under[-1] + 1))  # a branch's leaves are neighbours
            assert under[0] <= position <= under[-1]


def test_colours_follow_the_clusters() -> None:
    found = stun_ext.cluster_router(ROWS, n_clusters=12, full_tree=True)
    panel = draw_clusters([found]).axes[0]
    names = [int(label.get_text()) for label in panel.get_xticklabels()]
    assert sorted(names) == list(range(40))
    links = coloured_links(panel)
    assert len(links) == 39
    assert sum(colour == GREY for _, colour in links) == 11  # 12 clusters are joined by 11 merges
    for segment, colour in links:
        low, high = np.ceil(segment[:, 0].min() - 0.5), np.floor(segment[:, 0].max() + 0.5)
        inside = {int(found.labels[names[int(place)]]) for place in np.arange(low, high + 1)}
        assert colour == GREY or len(inside) == 1
    cut = next(line for line in panel.lines if line.get_linestyle() != "-").get_ydata()[0]
    assert found.Z is not None and found.Z[27, 2] < cut < found.Z[28, 2]


def test_a_tree_that_ended_early_is_drawn_up_to_there() -> None:
    found = stun_ext.cluster_router(ROWS, n_clusters=12)
    links = coloured_links(draw_clusters([found]).axes[0])
    assert len(links) == 28 and all(colour != GREY for _, colour in links)


def test_a_threshold_is_drawn_where_it_is() -> None:
    panel = draw_clusters([stun_ext.cluster_router(ROWS, threshold=3.0, full_tree=True)]).axes[0]
    assert [line.get_ydata()[0] for line in panel.lines] == [3.0]
    assert "cut\n3" in [text.get_text() for text in panel.texts]
    whole = draw_clusters([stun_ext.cluster_router(ROWS)]).axes[0]
    assert list(whole.lines) == [] and {colour for _, colour in coloured_links(whole)} == {GREY}


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_files(suffix: str, tmp_path: Path) -> None:
    starts = {".png": b"\x89PNG\r\n\x1a\n", ".pdf": b"%PDF-", ".svg": b"<?xml"}
    pictures = []
    for n_clusters in (5, 12):
        file = tmp_path / f"picture{suffix}"
        stun_ext.cluster_router(ROWS, n_clusters=n_clusters, full_tree=True).plot(file)
        pictures.append(file.read_bytes())
        assert pictures[-1].startswith(starts[suffix]) and len(pictures[-1]) > 5000
    assert pictures[0] != pictures[1]
    assert [path.name for path in tmp_path.iterdir()] == [f"picture{suffix}"]


def test_illegal_files(tmp_path: Path) -> None:
    found = stun_ext.cluster_router(ROWS)
    for name in ("picture.jpeg", "picture"):
        with pytest.raises(ValueError, match=r"a picture is one of \.png, \.pdf, \.svg, got"):
            found.plot(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="routers must hold at least one"):
        draw_clusters([])


def test_beyond_what_can_be_read_there_is_a_summary() -> None:
    rows = np.random.default_rng(0).standard_normal((301, 4))
    assert len(draw_clusters([stun_ext.cluster_router(rows[:300])]).axes) == 1
    found = stun_ext.cluster_router(rows, n_clusters=100, full_tree=True)
    curve, distribution, sizes = draw_clusters([found]).axes
    assert found.Z is not None
    left, heights = curve.lines[0].get_data()
    assert np.array_equal(left, np.arange(300, 0, -1)) and np.array_equal(heights, found.Z[:, 2])
    assert sum(bar.get_height() for bar in distribution.patches) == 300
    names = [label.get_text() for label in sizes.get_xticklabels()]
    counts = dict(zip(names, [bar.get_height() for bar in sizes.patches], strict=True))
    assert sum(counts.values()) == 100 and counts["1"] == sum(found.sizes == 1)
    assert counts["3-4"] == sum((found.sizes == 3) | (found.sizes == 4))


def test_star_shows_sizes() -> None:
    found = [stun_ext.cluster_router(ROWS, n_clusters=k, linkage="star") for k in (10, 20)]
    assert [sum(bar.get_height() for bar in panel.patches) for panel in draw_clusters(found).axes] == [10, 20]


@pytest.mark.parametrize("rows", [ROWS[:1], ROWS[:2], np.zeros((5, 2)), ROWS[[0, 0, 1]]])
@pytest.mark.parametrize("request_", [{}, {"n_clusters": 1}, {"threshold": 0.0}, {"threshold": 1e9}])
def test_little_to_draw(rows: np.ndarray, request_: dict[str, float], tmp_path: Path) -> None:
    stun_ext.cluster_router(rows, full_tree=True, **request_).plot(tmp_path / "a.png")  # type: ignore[arg-type]
    stun_ext.cluster_router(rows, **request_).plot(tmp_path / "a.png")  # type: ignore[arg-type]


def test_many_routers_share_a_page() -> None:
    found = stun_ext.cluster_router(ROWS, n_clusters=9, full_tree=True)
    figure = draw_clusters([found] * 48, title="a model")
    assert len(figure.axes) == 48 and figure.get_suptitle() == "a model"
    titles = {panel.get_title() for panel in figure.axes}
    assert titles == {f"router: 40 rows in 9 clusters, largest {found.sizes[0]}"}


def test_no_display_and_no_pyplot(tmp_path: Path) -> None:
    program = (
        "import sys, numpy, stun_ext\n"
        "stun_ext.cluster_router(numpy.eye(4), n_clusters=2).plot(sys.argv[1])\n"
        "print('matplotlib.pyplot' in sys.modules)\n"
    )
    environment = {
        "PATH": "",
        "HOME": str(tmp_path),
        "PYTHONPATH": ":".join(filter(None, sys.path)),
        "MPLBACKEND": "qtagg",
    }
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.png")],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr

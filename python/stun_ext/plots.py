# SPDX-License-Identifier: Apache-2.0
"""Pictures of clusters: a dendrogram where its leaves can be read, a summary beyond.

Drawn with matplotlib's Figure alone: no display is needed and the caller's pyplot state stays as it is.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stun_ext.clustering import RouterClusters
from stun_ext.files import replaced

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LEAVES = 300  # of a dendrogram that can still be read
_MAX_NAMES = 150  # names of leaves that fit a page's width
_FORMATS = (".png", ".pdf", ".svg")
# Okabe and Ito's colours, which the colour-blind can tell apart; without black and yellow, which is weak on white.
_PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
_APART, _INK, _CUT = "#B0B0B0", "#333333", "#000000"  # links above the cut; text; the cut itself
_DASHES = (0, (5, 3))
_MAX_PANELS = 12  # dendrograms with names of leaves on one page; more become small ones without


def draw_clusters(routers: Sequence[RouterClusters], *, title: str | None = None) -> Figure:
    """Draws the clusters of one or several routers on one page.

    Routers of up to 300 rows become dendrograms: links in a cluster in the cluster's colour, those above the cut
    grey, the cut dashed; up to 150 rows their leaves are named. Beyond, and for "star", which has no tree: merge
    heights by number of clusters, their distribution, and the sizes of the clusters.

    Args:
        routers: At least one. Trees that ended at their clusters are drawn up to there; give `cluster_router`
            ``full_tree=True`` for whole ones.
        title: Above the page.

    Raises:
        ValueError: No router.
    """
    if not routers:
        raise ValueError("[draw_clusters] routers must hold at least one, got none")
    if all(router.Z is not None and router.n <= MAX_LEAVES for router in routers):
        figure = _tree_page(routers)
    elif all(router.Z is None for router in routers):
        figure, panels = _page(len(routers), columns=min(3, len(routers)), size=(5.5, 3.6))
        for panel, router in zip(panels, routers, strict=True):
            _draw_sizes(panel, router)
            panel.set_title(f"{_name(router)}: {_found(router)}", fontsize=10, color=_INK)
    else:
        figure, panels = _page(3 * len(routers), columns=3, size=(4.8, 3.4))
        for index, router in enumerate(routers):
            _draw_summary(panels[3 * index : 3 * index + 3], router)
    if title is not None:
        figure.suptitle(title, color=_INK, fontsize=13)
    return figure


def check_format(path: str | os.PathLike[str]) -> None:
    """Raises ValueError unless a picture can be written to a file of this name."""
    if Path(path).suffix not in _FORMATS:
        raise ValueError(f"[plots] a picture is one of {', '.join(_FORMATS)}, got {os.fspath(path)!r}")


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a picture, whole or not at all; its suffix says the format.

    Raises:
        ValueError: A suffix that is no picture's.
    """
    check_format(path)
    with replaced(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:], dpi=130)


def _page(count: int, *, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, each of `size` inches, row by row."""
    from matplotlib.figure import Figure

    rows = math.ceil(count / columns)
    figure = Figure(figsize=(columns * size[0], rows * size[1] + 0.4), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in panels[count:]:
        unused.remove()
    for panel in panels[:count]:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8, colors=_INK)
    return figure, panels[:count]


# Dendrograms ------------------------------------------------------------------------------------------------


def _tree_page(routers: Sequence[RouterClusters]) -> Figure:
    most = max(router.n for router in routers)
    small = len(routers) > _MAX_PANELS
    if small:
        columns, size = 4, (4.2, 2.3)
    else:
        columns = 1 if most > 64 or len(routers) == 1 else 2
        width = max(6.0, 1.2 + 0.15 * min(most, _MAX_NAMES))
        size = (width, max(4.6, 0.3 * width) if len(routers) == 1 else 3.6)
    figure, panels = _page(len(routers), columns=columns, size=size)
    for panel, router in zip(panels, routers, strict=True):
        _draw_tree(panel, router, small=small)
    return figure


def _draw_tree(panel: Axes, router: RouterClusters, *, small: bool) -> None:
    from matplotlib.collections import LineCollection

    Z = router.Z
    assert Z is not None  # by draw_clusters
    order, links, clusters = tree_layout(Z, router.labels)
    colours = _cluster_colours(router, order)
    above = np.array(clusters) < 0
    for shown in (above, ~above):  # what joins two clusters lies behind the clusters
        panel.add_collection(
            LineCollection(
                [*links[shown]],
                colors=[colours.get(clusters[merge], _APART) for merge in np.flatnonzero(shown)],
                linewidths=0.9 if small or router.n > _MAX_NAMES else 1.4,
                capstyle="round",
            )
        )
    panel.set_xlim(-1, router.n)
    panel.set_ylim(*_height_range(Z))
    panel.set_title(f"{_name(router)}: {_found(router)}", fontsize=8 if small else 10, color=_INK)
    cut = _cut_height(router)
    if cut is not None:
        panel.axhline(cut, color=_CUT, linewidth=0.9, linestyle=_DASHES, zorder=0)
        if not small:
            panel.text(
                1.005, cut, f"cut\n{cut:.4g}", fontsize=7, va="center", transform=panel.get_yaxis_transform()
            )
    panel.set_xticks([])
    if small:
        panel.tick_params(labelsize=6)
        return
    if router.n <= _MAX_NAMES:
        panel.set_xticks(np.arange(router.n), [str(row) for row in order], rotation=90, fontsize=7)
    _label(panel, "expert", f"merge height, {router.linkage} linkage (Euclidean)")


def tree_layout(
    Z: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]
) -> tuple[list[int], npt.NDArray[np.float64], list[int]]:
    """Where a dendrogram's lines go.

    Args:
        Z: Merges of n rows, all or the first ones.
        labels: The cluster of each row.

    Returns:
        The leaves from left to right (of two branches the one with the lowest row first); the four corners of each
        merge's link, [m, 4, 2]: up from one branch, across, down to the other; and the cluster that each merge lies
        in, -1 if it joins two.
    """
    n, children = len(labels), [(int(first), int(second)) for first, second in Z[:, :2]]
    lowest, cluster = list(range(n)), labels.tolist()
    for first, second in children:
        lowest.append(min(lowest[first], lowest[second]))
        cluster.append(cluster[first] if cluster[first] == cluster[second] else -1)
    inner = {node for pair in children for node in pair}
    stack = sorted((node for node in range(n + len(Z)) if node not in inner), key=lambda node: -lowest[node])
    order: list[int] = []
    while stack:
        node = stack.pop()
        if node < n:
            order.append(node)
        else:
            stack += sorted(children[node - n], key=lambda child: -lowest[child])
    x, height = np.zeros(n + len(Z)), np.concatenate([np.zeros(n), Z[:, 2]])
    x[order] = np.arange(n)
    links = np.empty((len(Z), 4, 2))
    for merge, (first, second) in enumerate(children):
        x[n + merge] = (x[first] + x[second]) / 2
        links[merge, :, 0] = x[first], x[first], x[second], x[second]
        links[merge, :, 1] = height[first], height[n + merge], height[n + merge], height[second]
    return order, links, cluster[n:]


def _cluster_colours(router: RouterClusters, order: Sequence[int]) -> dict[int, str]:
    """A colour for each cluster of several rows, neighbours in the picture apart; none if all are one."""
    if router.n_clusters == 1:
        return {}
    members = router.members()
    shown = dict.fromkeys(label for label in router.labels[list(order)].tolist() if len(members[label]) > 1)
    return {label: _PALETTE[index % len(_PALETTE)] for index, label in enumerate(shown)}


def _height_range(Z: npt.NDArray[np.float64]) -> tuple[float, float]:
    """From zero, unless that would leave the merges a sliver at the top: then the leaves hang lower than shown."""
    if not len(Z) or Z[:, 2].max() <= 0:
        return 0.0, 1.0
    low, high = float(Z[:, 2].min()), float(Z[:, 2].max())
    bottom = 0.0 if low < high / 2 else low - 0.3 * (high - low)
    if bottom == high:
        bottom = 0.0
    return bottom, high + 0.06 * (high - bottom)


def _cut_height(router: RouterClusters) -> float | None:
    """Where the cut is drawn: at the threshold, or, for a number of clusters, halfway to the next merge."""
    Z, applied = router.Z, router.n - router.n_clusters
    if Z is None or applied == len(Z) == router.n - 1:
        return None
    last = 0.0 if router.threshold is None else router.threshold
    if applied < len(Z) and (applied == 0 or last == Z[applied - 1, 2]) and last <= Z[applied, 2]:
        return float(last + Z[applied, 2]) / 2
    return last


# Summaries --------------------------------------------------------------------------------------------------


def _draw_summary(panels: Sequence[Axes], router: RouterClusters) -> None:
    """Merge heights by number of clusters, their distribution, and the clusters' sizes."""
    curve, distribution, sizes = panels
    Z, cut = router.Z, _cut_height(router)
    curve.set_title(_name(router), fontsize=10, color=_INK)
    if Z is None:
        for panel in (curve, distribution):
            panel.set_axis_off()
    else:
        left = router.n - 1 - np.arange(len(Z))
        curve.plot(left, Z[:, 2], color=_PALETTE[0], linewidth=1.3)
        curve.set_xscale("log")
        curve.invert_xaxis()  # as the run goes: from single rows to one cluster
        curve.xaxis.set_major_formatter("{x:,.0f}")
        _label(curve, "clusters left", f"merge height, {router.linkage} linkage (Euclidean)")
        distribution.hist(Z[:, 2], bins=60, color=_PALETTE[5])
        distribution.set_title(f"{len(Z):,} merges", fontsize=10, color=_INK)
        _label(distribution, "merge height (Euclidean)", "merges")
        if cut is not None:
            curve.axhline(cut, color=_CUT, linewidth=0.9, linestyle=_DASHES)
            curve.plot([router.n_clusters], [cut], "o", color=_CUT, markersize=4)
            distribution.axvline(cut, color=_CUT, linewidth=0.9, linestyle=_DASHES, label=f"cut {cut:.4g}")
            distribution.legend(fontsize=8, frameon=False)
    _draw_sizes(sizes, router)
    sizes.set_title(_found(router), fontsize=10, color=_INK)


def _draw_sizes(panel: Axes, router: RouterClusters) -> None:
    """How many clusters have 1 row, 2, 3-4, 5-8, ...; the numbers stand on the bars."""
    steps = np.ceil(np.log2(router.sizes)).astype(int)  # 0: 1, 1: 2, 2: 3-4, 3: 5-8
    counts = np.bincount(steps)
    names = [
        str(2**step) if step < 2 else f"{2 ** (step - 1) + 1:,}-{2**step:,}" for step in range(len(counts))
    ]
    bars = panel.bar(np.arange(len(counts)), counts, color=_PALETTE[2], width=0.8)
    panel.bar_label(bars, labels=[f"{count:,}" if count else "" for count in counts], fontsize=7, color=_INK)
    panel.set_xticks(np.arange(len(counts)), names, rotation=45 if len(names) > 6 else 0)
    _label(panel, "rows in a cluster", "clusters")


def _label(panel: Axes, x: str, y: str) -> None:
    panel.set_xlabel(x, fontsize=8, color=_INK)
    panel.set_ylabel(y, fontsize=8, color=_INK)


def _name(router: RouterClusters) -> str:
    if router.layer is not None:
        return f"layer {router.layer}"
    return "router" if router.name is None else router.name.rpartition("/")[2][-48:]


def _found(router: RouterClusters) -> str:
    if router.n_clusters == 1:
        return f"{router.n:,} rows"
    return f"{router.n:,} rows in {router.n_clusters:,} clusters, largest {int(router.sizes[0]):,}"

# SPDX-License-Identifier: Apache-2.0
"""Stage 1's decisions on hand-checkable layers, against SciPy and plain loops."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import cdist, squareform

from stun_ext.expert_pruning import decide, nearest_to_mean, saliency, similarity_distances, uniform_count
from stun_ext.recipe import Recipe
from stun_ext.statistics import LayerStatistics


@dataclass
class Matrix:
    weights: torch.Tensor
    name: str = "gate_up_proj"

    def expert(self, e):
        return self.weights[e]


@dataclass
class Layer:
    """What stage 1 reads of a MoELayer."""

    router_weight: torch.Tensor
    matrices: list = field(default_factory=list)
    index: int = 0
    name: str = "model.layers.0.mlp"
    top_k: int = 2
    n_group: int = 1
    topk_group: int = 1

    @property
    def num_experts(self):
        return self.router_weight.shape[0]


def layer_of(points, **settings):
    return Layer(torch.tensor(points, dtype=torch.float32).reshape(len(points), -1), **settings)


def statistics_of(weighted, *, count=None, norm_sum=None, norm_sq_sum=None, coactivation=None, gram=None):
    n = len(weighted)
    zeros = torch.zeros(n, dtype=torch.float64)
    return LayerStatistics(
        token_count=torch.tensor(count if count is not None else [1] * n, dtype=torch.int64),
        norm_sum=torch.tensor(norm_sum, dtype=torch.float64) if norm_sum else zeros,
        norm_sq_sum=torch.tensor(norm_sq_sum, dtype=torch.float64) if norm_sq_sum else zeros,
        weighted_norm_sum=torch.tensor(weighted, dtype=torch.float64),
        coactivation=torch.tensor(coactivation) if coactivation else torch.zeros(n, n, dtype=torch.int64),
        gram=torch.zeros(n, n, dtype=torch.float64),
        input_sq_norm={},
        gated_input_sq_norm={},
        num_tokens=int(sum(count)) if count else n,
        starved=[],
    )


def test_saliencies_by_hand():
    stats = statistics_of(
        [6.0, 3.0, 0.0], count=[4, 1, 0], norm_sum=[8.0, 3.0, 0.0], norm_sq_sum=[20.0, 9.0, 0.0]
    )
    assert saliency(stats, "frequency").tolist() == [4, 1, 0]
    assert saliency(stats, "weighted_norm_sum").tolist() == [6, 3, 0]
    assert saliency(stats, "reap").tolist() == [1.5, 3, 0]
    assert saliency(stats, "man").tolist() == [2, 3, 0]
    assert saliency(stats, "msan").tolist() == [5, 9, 0]
    with pytest.raises(ValueError, match="'hope'"):
        saliency(stats, "hope")


@pytest.mark.parametrize(
    ("share", "multiple", "least", "kept"),
    [
        (0.25, 1, None, 6),
        (0.2, 1, None, 6),  # 6.4
        (0.1875, 1, None, 7),  # 6.5: of two equally near the larger
        (0.25, 4, None, 8),
        (0.5, 4, None, 4),
        (0.7, 1, None, 2),  # 2.4; top-k is 2
        (0.4, 1, 5, 5),
        (0.5, 1, 4, 4),
    ],
)
def test_uniform_count_is_the_nearest_legal_one(share, multiple, least, kept):
    recipe = Recipe(sparsity=0.8, expert_sparsity=share, expert_multiple=multiple, min_experts=least)
    assert uniform_count(layer_of(range(8)), recipe) == kept


def test_uniform_count_refuses_fewer_than_top_k():
    with pytest.raises(ValueError, match=r"model.layers.0.mlp.*at least 2"):
        uniform_count(layer_of(range(8)), Recipe(sparsity=0.95, expert_sparsity=0.9))
    with pytest.raises(ValueError, match="no expert can be removed"):
        uniform_count(layer_of(range(2)), Recipe(sparsity=0.6, expert_sparsity=0.4))


def test_the_default_share_gives_way_to_what_is_legal():
    default = Recipe(sparsity=0.9)  # would remove a good half of 32 experts
    assert uniform_count(layer_of(range(32), top_k=24), default) == 24
    assert uniform_count(layer_of(range(2)), default) == 2
    assert uniform_count(layer_of(range(4)), default.replace(expert_multiple=3)) == 4
    with pytest.raises(ValueError, match="at least 24"):
        uniform_count(layer_of(range(32), top_k=24), default.replace(expert_sparsity=0.5))


def test_the_best_experts_stay_and_ties_keep_the_lower_id():
    layer = layer_of(range(6))
    stats = statistics_of([1.0, 5.0, 2.0, 2.0, 0.5, 2.0])
    decision = decide([layer], [stats], Recipe(expert_sparsity=0.5)).layers[0]
    assert decision.kept == [1, 2, 3]


def test_groups_keep_equally_many():
    layer = layer_of(range(8), n_group=2, topk_group=1)
    stats = statistics_of([9.0, 8.0, 7.0, 6.0, 1.0, 4.0, 3.0, 2.0])
    assert decide([layer], [stats], Recipe(expert_sparsity=0.5)).layers[0].kept == [0, 1, 5, 6]


def test_random_is_seeded_and_differs_between_layers():
    layers = [layer_of(range(16)), layer_of(range(16), index=1)]
    recipe = Recipe(expert_sparsity=0.5, criterion="random", seed=3)
    first = [d.kept for d in decide(layers, [None, None], recipe).layers]
    assert first == [d.kept for d in decide(layers, [None, None], recipe).layers]
    assert first[0] != first[1]
    assert first != [d.kept for d in decide(layers, [None, None], recipe.replace(seed=4)).layers]


def test_similarity_is_router_distance_less_coactivation():
    rows = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    counts = np.random.default_rng(1).integers(0, 9, (5, 5))
    counts = np.triu(counts, 1) + np.triu(counts, 1).T
    stats = statistics_of([1.0] * 5, coactivation=counts.tolist())
    recipe = Recipe(criterion="similarity", similarity=(2.0, 0.5))
    expected = 2.0 * cdist(rows.astype(np.float64), rows.astype(np.float64)) - 0.5 * counts / counts.mean()
    np.testing.assert_allclose(
        similarity_distances(Layer(torch.from_numpy(rows)), stats, recipe), expected, atol=1e-5
    )
    normed = similarity_distances(
        Layer(torch.from_numpy(rows)), stats, recipe.replace(similarity=(1, 0), normalize_router=True)
    )
    np.testing.assert_allclose(normed, cdist(rows, rows) / np.linalg.norm(rows), atol=1e-6)


@pytest.mark.parametrize("method", ["complete", "average", "single"])
def test_uniform_clusters_are_scipys(method):
    rows = np.random.default_rng(4).standard_normal((12, 5)).astype(np.float32)
    layer = Layer(
        torch.from_numpy(rows), [Matrix(torch.randn(12, 3, 4, generator=torch.Generator().manual_seed(0)))]
    )
    recipe = Recipe(criterion="similarity", linkage=method, expert_sparsity=0.5)
    decision = decide([layer], [None], recipe).layers[0]
    reference = fcluster(
        linkage(squareform(cdist(rows.astype(float), rows.astype(float)), checks=False), method),
        6,
        "maxclust",
    )
    lowest = [int(np.flatnonzero(reference == label)[0]) for label in reference]
    assert decision.labels == lowest
    assert len(decision.kept) == 6 and {decision.labels[k] for k in decision.kept} == set(lowest)


def test_star_with_uniform_counts_reaches_exactly_k():
    layer = layer_of([0, 1, 3, 4.2, 10, 11], matrices=[Matrix(torch.randn(6, 2, 2))])
    for share, count in ((0.5, 3), (1 / 3, 4), (2 / 3, 2)):
        recipe = Recipe(criterion="similarity", linkage="star", expert_sparsity=share, sparsity=0.8)
        assert len(decide([layer], [None], recipe).layers[0].kept) == count


def test_representatives():
    # Experts 0-2 form one cluster, 3 and 4 another; weights chosen so that 1 is nearest to the first mean.
    layer = layer_of(
        [0.0, 0.1, 0.2, 9.0, 9.1],
        matrices=[Matrix(torch.tensor([0.0, 1.0, 2.1, 5.0, 7.0]).reshape(5, 1, 1).expand(5, 2, 2))],
    )
    recipe = Recipe(criterion="similarity", expert_sparsity=0.6, sparsity=0.8)
    nearest = decide([layer], [None], recipe).layers[0]
    assert nearest.kept == [1, 3] and nearest.labels == [0, 0, 0, 3, 3] and nearest.members == {}
    mean = decide([layer], [None], recipe.replace(representative="mean")).layers[0]
    assert mean.kept == [1, 3] and mean.members == {
        3: [3, 4]
    }  # three members: kappa=3 keeps the nearest instead
    everything = decide([layer], [None], recipe.replace(representative="mean", mean_limit=4)).layers[0]
    assert everything.kept == [0, 3] and everything.members == {0: [0, 1, 2], 3: [3, 4]}
    stats = statistics_of([1.0, 2.0, 9.0, 3.0, 3.0])
    assert decide([layer], [stats], recipe.replace(representative="score")).layers[0].kept == [2, 3]


def test_nearest_to_mean_in_chunks_and_ties():
    weights = torch.randn(4, 700, 1100, generator=torch.Generator().manual_seed(2))
    layer = Layer(torch.zeros(4, 1), [Matrix(weights), Matrix(weights[:, :50, :60].mT, "down_proj")])
    flat = torch.cat([weights.flatten(1), weights[:, :50, :60].flatten(1)], dim=1).double()
    expected = int(((flat - flat.mean(0)) ** 2).sum(1).argmin())
    assert nearest_to_mean(layer, [0, 1, 2, 3]) == expected
    same = Layer(torch.zeros(2, 1), [Matrix(torch.tensor([1.0, 3.0]).reshape(2, 1, 1))])
    assert nearest_to_mean(same, [0, 1]) == 0


def test_global_scores_compare_shares_of_the_layer():
    layers = [layer_of(range(4)), layer_of(range(4), index=1)]
    stats = [statistics_of([100.0, 1.0, 1.0, 98.0]), statistics_of([0.4, 0.3, 0.2, 0.1])]
    decided = decide(layers, stats, Recipe(expert_sparsity=0.375, per_layer="global"))
    assert [d.kept for d in decided.layers] == [[0, 3], [0, 1, 2]]
    assert decided.requested_total == 5 and sum(decided.counts) == 5


def test_global_counts_respect_minimum_and_multiple():
    layers = [layer_of(range(8)), layer_of(range(8), index=1)]
    stats = [statistics_of([1e-9] * 7 + [1.0]), statistics_of([1.0] * 8)]
    decided = decide(layers, stats, Recipe(expert_sparsity=0.5, per_layer="global", min_experts=3))
    assert decided.counts == [3, 5]
    decided = decide(layers, stats, Recipe(expert_sparsity=0.5, per_layer="global", expert_multiple=4))
    assert decided.counts == [4, 4]


@pytest.mark.parametrize("method", ["complete", "average"])
def test_global_linkage_is_one_threshold_on_the_heights(method):
    rng = np.random.default_rng(6)
    layers = [
        Layer(
            torch.from_numpy((scale * rng.standard_normal((10, 4))).astype(np.float32)),
            [Matrix(torch.randn(10, 2, 2))],
            index=i,
        )
        for i, scale in enumerate((1.0, 0.5, 2.0))
    ]
    decided = decide(
        layers,
        [None] * 3,
        Recipe(criterion="similarity", linkage=method, per_layer="global", expert_sparsity=0.3, sparsity=0.8),
    )
    heights = [linkage(layer.router_weight.numpy().astype(float), method)[:, 2] for layer in layers]
    assert sum(decided.counts) == 21
    assert decided.counts == [10 - int((h <= decided.threshold * (1 + 1e-9)).sum()) for h in heights]


def test_global_star_meets_the_total():
    rng = np.random.default_rng(7)
    layers = [
        Layer(
            torch.from_numpy(rng.standard_normal((16, 6)).astype(np.float32)),
            [Matrix(torch.randn(16, 2, 2))],
            index=i,
        )
        for i in range(3)
    ]
    recipe = Recipe(criterion="similarity", linkage="star", per_layer="global", expert_sparsity=0.25)
    decided = decide(layers, [None] * 3, recipe)
    assert sum(decided.counts) == decided.requested_total == 36
    with pytest.raises(ValueError, match="expert_multiple=2"):
        decide(layers, [None] * 3, recipe.replace(expert_multiple=2))


def test_nothing_goes_when_nothing_is_asked():
    decided = decide([layer_of(range(4))], [None], Recipe(expert_sparsity=0.0))
    assert decided.layers[0].kept == [0, 1, 2, 3] and decided.threshold is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_a_pair_the_lower_id_stands_whatever_the_rounding(dtype):
    for seed in range(20):
        weights = torch.randn(3, 67, 131, generator=torch.Generator().manual_seed(seed)).to(dtype)
        layer = Layer(torch.zeros(3, 1), [Matrix(weights), Matrix(weights[:, :33, :17].mT, "down_proj")])
        assert nearest_to_mean(layer, [2, 1]) == 1

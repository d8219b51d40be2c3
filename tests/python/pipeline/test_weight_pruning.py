# SPDX-License-Identifier: Apache-2.0
"""Stage 2 against scipy.stats, hand-worked cases and plain loops."""

import numpy as np
import pytest
import torch
from scipy import stats

from stun_ext.weight_pruning import (
    Moments,
    outlier_percent,
    owl_sparsities,
    prune_counts,
    prune_matrix,
    scores,
)


def test_kurtosis_equals_scipys_and_adds_up():
    values = torch.from_numpy(np.random.default_rng(0).standard_t(5, (40, 50)).astype(np.float32) + 0.3)
    moments = Moments()
    moments.add(values[:10])
    moments.add(values[10:])
    assert moments.kurtosis == pytest.approx(
        stats.kurtosis(values.numpy(), axis=None, fisher=False), rel=1e-4
    )


def test_kurtosis_of_what_is_left_ignores_zeros():
    values = torch.from_numpy(np.random.default_rng(1).standard_normal((30, 30)).astype(np.float32))
    values[values.abs() < 0.5] = 0
    moments = Moments()
    moments.add(values, nonzero_only=True)
    left = values[values != 0].numpy()
    assert moments.kurtosis == pytest.approx(stats.kurtosis(left, fisher=False), rel=1e-4)


def test_kurtosis_of_nothing_is_nan():
    assert np.isnan(Moments().kurtosis)
    constant = Moments()
    constant.add(torch.ones(4, 4))
    assert np.isnan(constant.kurtosis)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.533, 0.65, 0.9999])
@pytest.mark.parametrize(("rows", "cols"), [(1, 7), (96, 256), (256, 80), (3, 1)])
def test_prune_counts_meet_the_total_and_differ_by_at_most_one(rows, cols, sparsity):
    counts = prune_counts(rows, cols, sparsity)
    assert counts.sum() == round(rows * cols * sparsity)
    assert counts.max() - counts.min() <= 1
    assert counts.min() >= int(cols * sparsity) - 1 and counts.max() <= cols


def test_prune_counts_spread_the_remainder():
    assert prune_counts(4, 3, 0.5).tolist() == [1, 2, 1, 2]


def test_prune_matrix_is_wanda_on_a_hand_worked_case():
    weight = torch.tensor([[1.0, -2.0, 3.0, 0.5], [4.0, 1.0, -1.0, 2.0]])
    norms = torch.tensor([16.0, 1.0, 0.25, 4.0])  # scores: 4 2 1.5 1 / 16 1 0.5 4
    assert prune_matrix(weight, norms, sparsity=0.5) == 4
    assert weight.tolist() == [[1.0, -2.0, 0.0, 0.0], [4.0, 0.0, 0.0, 2.0]]


def test_prune_matrix_of_a_transposed_view_changes_the_stored_weight():
    stored = torch.arange(1.0, 13.0).reshape(4, 3)  # [in, out]
    expected = stored.T.clone()
    assert prune_matrix(stored.T, None, sparsity=0.5) == 6
    expected[:, :2] = 0  # per output row, the two lowest of four inputs
    assert torch.equal(stored.T, expected)


def test_prune_matrix_with_a_pattern_keeps_n_of_m():
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    norms = torch.rand(16, generator=torch.Generator().manual_seed(1))
    reference = scores(weight, norms).reshape(6, 4, 4)
    zeros = prune_matrix(weight, norms, sparsity=0.0, pattern=(2, 4))
    kept = (weight != 0).reshape(6, 4, 4)
    assert zeros == 48 and torch.equal(kept.sum(-1), torch.full((6, 4), 2))
    assert torch.equal((reference * kept).sum(-1), reference.topk(2).values.sum(-1))


def test_outlier_percent_by_hand():
    a = torch.tensor(
        [[1.0, 1.0], [1.0, 9.0]]
    )  # scores with norm 1: mean over both matrices 20/8 = 2.5, M=2: above 5
    b = torch.tensor([[2.0, 2.0], [2.0, 2.0]])
    ones = torch.ones(2)
    assert outlier_percent([(a, ones), (b, None)], 2.0) == pytest.approx(100 / 8)


def test_owl_formula_without_clipping():
    outliers, parameters = [1.0, 3.0, 2.0], [10, 30, 20]
    found = owl_sparsities(outliers, parameters, 0.6, 0.1)
    r = np.array([0.0, 0.2, 0.1])
    keep = r - np.average(r, weights=parameters) + 0.4
    np.testing.assert_allclose(found, 1 - keep, atol=1e-12)


def test_owl_meets_the_total_after_clipping():
    found = owl_sparsities([0.0, 5.0, 10.0, 4.0], [100, 5, 1, 3], 0.05, 0.4)
    assert min(found) == 0.0
    assert np.average(found, weights=[100, 5, 1, 3]) == pytest.approx(0.05, abs=1e-9)
    found = owl_sparsities([0.0, 5.0, 10.0, 4.0], [100, 5, 100, 3], 0.9, 0.4)
    assert max(found) == 0.99
    assert np.average(found, weights=[100, 5, 100, 3]) == pytest.approx(0.9, abs=1e-9)


def test_owl_is_uniform_when_layers_look_alike():
    assert owl_sparsities([2.0, 2.0], [3, 4], 0.5, 0.08) == [0.5, 0.5]

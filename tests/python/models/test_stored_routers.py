# SPDX-License-Identifier: Apache-2.0
"""The routers in a checkpoint of each family are those of the loaded model, bit for bit; no other weight is touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_families import FAMILIES, E, make_model
from test_ragged import slice_raggedly

from stun_ext.checkpoint import save_pretrained
from stun_ext.models import analyze, stored_routers
from stun_ext.routers import model_routers


@pytest.mark.parametrize("family", FAMILIES)
def test_routers_of_a_checkpoint(family, tmp_path):
    model = make_model(family)
    model.save_pretrained(tmp_path, max_shard_size="20KB")  # several files
    moe = analyze(model)
    found = model_routers(tmp_path)
    assert [router.layer for router in found] == [layer.index for layer in moe.layers] != []
    for router, layer in zip(found, moe.layers, strict=True):
        assert isinstance(router.rows, np.memmap) and not router.rows.flags.writeable
        assert torch.equal(torch.from_numpy(router.rows.copy()), layer.router_weight)


def test_layers_can_be_chosen(tmp_path):
    make_model("qwen3_moe").save_pretrained(tmp_path)
    assert [router.layer for router in model_routers(tmp_path, layers=[2, 0])] == [0, 2]
    with pytest.raises(ValueError, match=r"layers must be of those with experts, \[0, 1, 2\], got 3"):
        model_routers(tmp_path, layers=[1, 3])


def test_layers_with_their_own_counts(tmp_path):
    model, moe, counts, _ = slice_raggedly("deepseek_v3")
    save_pretrained(model, tmp_path / "out")
    found = model_routers(tmp_path / "out")
    assert [len(router.rows) for router in found] == counts
    for router, layer in zip(found, moe.layers, strict=True):
        assert torch.equal(torch.from_numpy(router.rows.copy()), layer.router_weight)


def test_a_router_that_is_not_there_is_named():
    moe = analyze(make_model("mixtral"))
    names = [f"model.layers.{layer}.block_sparse_moe.gate.weight" for layer in range(3)]
    shapes = dict.fromkeys(names, (E, 32))
    assert [router.tensor for router in stored_routers(moe, shapes)] == names
    for wrong in ({}, {names[1]: (E, 31)}, {names[1]: (E + 1, 32)}, {names[1]: (E, 32, 1)}):
        with pytest.raises(ValueError, match=r"no tensor that becomes model\.layers\.1\.mlp\.gate\.weight"):
            stored_routers(moe, {names[0]: (E, 32), **wrong, names[2]: (E, 32)})


def test_rows_of_a_transposed_tensor():
    """No family at hand stores its router so; extra rows, as of zero experts, are no experts."""
    from stun_ext.models import StoredRouter
    from stun_ext.models.schema import ExpertTensor

    values = np.arange(30.0).reshape(5, 6)
    router = StoredRouter(0, "mlp", "mlp.gate", ExpertTensor("mlp.gate", ndim=2, axis=1, extra=2))
    assert np.array_equal(router.rows(values), values.T[:4])

# SPDX-License-Identifier: Apache-2.0
"""Legal counts, refusals before any change, means, and what happens to parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from model_families import BASE, E, H, I, kept_ids, logits, make_config, make_model, randomize
from transformers import MixtralForCausalLM

from stun_ext.models import analyze, legal_expert_counts, plan_slices, slicing_refusals


def plan_and_apply(model, kept, members=None):
    moe = analyze(model)
    plan_slices(moe, [len(ids) for ids in kept]).apply(kept, members)
    return moe


@pytest.fixture
def untouched():
    """Checks at the end that the models given to it have not changed."""
    watched = []

    def watch(model):
        state = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}
        watched.append((model, state, model.config.to_json_string()))
        return model

    yield watch
    for model, state, config in watched:
        assert model.config.to_json_string() == config
        for name, parameter in model.named_parameters():
            assert id(parameter) == state[name][0] and torch.equal(parameter, state[name][1])


# --- legal counts ---


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}, [2, 3, 4, 5, 6, 7, 8]),
        ({"n_group": 1, "topk_group": 1, "num_experts_per_tok": 6}, [6, 7, 8]),
        ({"n_group": 2, "topk_group": 1, "num_experts_per_tok": 2}, [4, 6, 8]),
        ({"n_group": 2, "topk_group": 1, "num_experts_per_tok": 3}, [6, 8]),
        ({"n_group": 2, "topk_group": 2, "num_experts_per_tok": 6}, [6, 8]),
        ({"n_group": 4, "topk_group": 2, "num_experts_per_tok": 4}, [8]),
    ],
)
def test_legal_counts(changes, expected):
    layer = analyze(make_model("deepseek_v3", **changes)).layers[0]
    assert legal_expert_counts(layer) == expected


def test_legal_counts_are_those_the_router_can_run_with():
    """Against the stock router itself: every legal count runs, and with 1 expert per group topk(2) cannot."""
    for n_group in (1, 2, 4):
        changes = {"n_group": n_group, "topk_group": 1, "num_experts_per_tok": 2}
        layer = analyze(make_model("deepseek_v3", **changes)).layers[0]
        for count in legal_expert_counts(layer):
            assert torch.isfinite(logits(make_model("deepseek_v3", n_routed_experts=count, **changes))).all()


def test_legal_counts_of_a_multiple():
    layer = analyze(make_model("mixtral")).layers[0]
    assert legal_expert_counts(layer, multiple=4) == [4, 8]
    assert legal_expert_counts(layer, multiple=3) == [3, 6, 8]
    with pytest.raises(ValueError, match="multiple must be at least 1, got 0"):
        legal_expert_counts(layer, multiple=0)


def test_top_1_keeps_two_experts():
    layer = analyze(make_model("mixtral", num_experts_per_tok=1)).layers[0]
    assert legal_expert_counts(layer)[0] == 2


def test_groups_of_a_router_that_ignores_them():
    layer = analyze(make_model("deepseek_v2", topk_method="greedy")).layers[0]
    assert (layer.n_group, layer.topk_group) == (1, 1)


@pytest.mark.parametrize(
    ("family", "counts", "message"),
    [
        (
            "mixtral",
            [1, 1, 1],
            "model.layers.0.mlp: 1 experts: fewer than the 2 experts each token chooses; legal are 2, 3",
        ),
        ("mixtral", [6, 9, 6], r"model.layers.1.mlp: 9 experts: must be in \[1, 8\]"),
        ("mixtral", [6, 6], "counts must have 3 entries, one per MoE layer, got 2"),
        ("deepseek_v3", [5, 5], "not divisible by the 2 routing groups; legal are 4, 6, 8"),
        ("deepseek_v3", [2, 2], "fewer than 2 experts in each of the 2 routing groups"),
        ("dbrx", [6, 5], "ffn_config.moe_num_experts cannot vary per layer"),
    ],
)
def test_illegal_counts_are_refused(family, counts, message, untouched):
    moe = analyze(untouched(make_model(family)))
    with pytest.raises(ValueError, match=message):
        plan_slices(moe, counts)


def test_dense_models_have_no_experts(untouched):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    moe = analyze(untouched(LlamaForCausalLM(config)))
    assert moe.layers == [] and moe.num_experts == 0 and moe.family == "llama"
    with pytest.raises(ValueError, match="no routed experts"):
        plan_slices(moe, [])


def test_moe_family_without_moe_layers_is_dense():
    assert analyze(make_model("qwen3_moe", mlp_only_layers=[0, 1, 2])).layers == []


# --- refusals ---


class HiddenCount(MixtralForCausalLM):
    """A model whose router has a tensor of 8 entries that the config's count does not decide."""

    SIZE = E

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp.gate.register_parameter("temperature", torch.nn.Parameter(torch.ones(self.SIZE)))


class ConfiguredSize(MixtralForCausalLM):
    """The same size, but one that the config explains."""

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp.gate.register_parameter(
                "temperature", torch.nn.Parameter(torch.ones(config.router_width))
            )


def test_left_over_expert_axis_is_refused_by_name(untouched):
    moe = analyze(untouched(HiddenCount(make_config("mixtral"))))
    with pytest.raises(
        ValueError, match=r"model.layers.0.mlp.gate.temperature: dimension 0 has as many entries"
    ):
        plan_slices(moe, [6, 6, 6])


def test_expert_sized_axis_that_the_config_explains_is_a_coincidence():
    moe = analyze(ConfiguredSize(make_config("mixtral", router_width=E)))
    assert slicing_refusals(moe) == []


@pytest.mark.parametrize("changes", [{"intermediate_size": E}, {"hidden_size": E, "head_dim": 4}])
def test_sizes_equal_to_the_number_of_experts(changes):
    model = make_model("mixtral", **changes)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = [[0, 2, 5, 7]] * 3
    plan_and_apply(model, kept)
    for name, tensor in model.state_dict().items():
        expected = before[name][kept[0]] if ".mlp." in name else before[name]
        assert torch.equal(tensor, expected), name


def test_hidden_size_equal_to_experts_with_a_scale_of_that_size():
    """Gemma 4's router has a scale of the hidden size in the router itself: explained by hidden_size."""
    assert slicing_refusals(analyze(make_model("gemma4_text", num_experts=H))) == []


def test_tables_of_expert_ids_are_refused_by_name(untouched):
    model = make_model(
        "mixtral",
    )
    table = torch.randint(0, E, (96, 2), generator=torch.Generator().manual_seed(0))

    class WithTable(MixtralForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            for layer in self.model.layers:
                layer.mlp.gate.register_buffer("tid2eid", table.clone())

    moe = analyze(untouched(WithTable(model.config)))
    with pytest.raises(ValueError, match=r"model.layers.0.mlp.gate.tid2eid: a table of expert ids"):
        plan_slices(moe, [6, 6, 6])


def test_deepseek_v4_hash_layers_are_refused_by_name():
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config = CONFIG_MAPPING["deepseek_v4"](
        **{
            **BASE,
            **{"n_routed_experts": E, "moe_intermediate_size": I, "intermediate_size": I, "hc_mult": 2},
            **{"num_key_value_heads": 1, "o_groups": 2, "o_lora_rank": 8, "q_lora_rank": 8, "head_dim": 16},
            **{"qk_rope_head_dim": 8, "partial_rotary_factor": 0.5, "sliding_window": 16},
            **{"index_topk": 8, "index_head_dim": 8, "index_n_heads": 4, "num_nextn_predict_layers": 0},
            "mlp_layer_types": ["hash_moe", "moe", "moe"],
        }
    )
    moe = analyze(randomize(AutoModelForCausalLM.from_config(config)))
    assert len(moe.layers) == 3
    assert [reason.split(":")[0] for reason in slicing_refusals(moe)] == ["model.layers.0.mlp.gate.tid2eid"]


def test_counts_per_expert_are_sliced_and_permutations_refused():
    class Counting(MixtralForCausalLM):
        VALUES = torch.full((E,), 3)

        def __init__(self, config):
            super().__init__(config)
            for layer in self.model.layers:
                values = (
                    self.VALUES if config.num_local_experts == E else torch.zeros(config.num_local_experts)
                )
                layer.mlp.gate.register_buffer("tokens", values.long())

    model = Counting(make_config("mixtral"))
    plan_and_apply(model, [[0, 1, 2, 3, 4]] * 3)
    assert model.model.layers[0].mlp.gate.tokens.tolist() == [3] * 5
    Counting.VALUES = torch.tensor([7, 6, 5, 4, 3, 2, 1, 0])
    refusals = slicing_refusals(analyze(Counting(make_config("mixtral"))))
    assert refusals and "model.layers.0.mlp.gate.tokens: a table of expert ids" in refusals[0]


def test_dependence_that_is_not_one_slice_per_expert_is_refused():
    class Odd(MixtralForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            gate = self.model.layers[0].mlp.gate
            gate.register_parameter(
                "keys", torch.nn.Parameter(torch.ones(int(config.num_local_experts**0.5), 4))
            )
            gate.inverse_count = 1.0 / config.num_local_experts

    refusals = slicing_refusals(analyze(Odd(make_config("mixtral"))))
    assert any("model.layers.0.mlp.gate.keys: shape (2, 4) becomes (4, 4)" in reason for reason in refusals)
    assert any(
        "model.layers.0.mlp.gate.inverse_count: the value 0.125 becomes 0.0625" in reason
        for reason in refusals
    )


def test_experts_that_are_modules_of_their_own_are_refused():
    class Modular(MixtralForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            for layer in self.model.layers:
                layer.mlp.extra = torch.nn.ModuleList(
                    torch.nn.Linear(4, 4) for _ in range(config.num_local_experts)
                )

    with pytest.raises(
        ValueError, match=r"model.layers.0.mlp.extra.10.bias: each expert is a module of its own"
    ):
        plan_slices(analyze(Modular(make_config("mixtral"))), [6, 6, 6])


def test_model_that_is_not_what_its_config_says_is_refused(untouched):
    model = make_model("mixtral")
    model.model.layers[0].self_attn.q_proj = torch.nn.Linear(H, 2 * H, bias=False)
    with pytest.raises(ValueError, match=r"self_attn.q_proj.weight: shape \(64, 32\)"):
        plan_slices(analyze(untouched(model)), [6, 6, 6])


def test_config_that_rejects_the_count_is_refused(untouched):
    class Picky(MixtralForCausalLM):
        def __init__(self, config):
            if config.num_local_experts % 4:
                raise ValueError("num_local_experts must be a multiple of 4")
            super().__init__(config)

    moe = analyze(untouched(Picky(make_config("mixtral"))))
    plan_slices(moe, [4, 4, 4])
    with pytest.raises(
        ValueError, match=r"do not accept \[6, 6, 6\] experts: num_local_experts must be a multiple of 4"
    ):
        plan_slices(moe, [6, 6, 6])


def test_unknown_count_field_is_an_error_not_a_dense_model():
    model = make_model("mixtral")
    model.config.__dict__["how_many"] = model.config.__dict__.pop("num_local_experts")
    with pytest.raises(ValueError, match=r"experts looks like routed experts"):
        analyze(model)


def test_not_a_transformers_model():
    with pytest.raises(ValueError, match=r"must be a transformers\.PreTrainedModel, got Linear"):
        analyze(torch.nn.Linear(2, 2))


# --- apply ---


@pytest.mark.parametrize(
    ("family", "kept", "members", "message"),
    [
        ("mixtral", [[0, 1], [0, 1], [0]], None, "model.layers.2.mlp: kept must have 2 expert ids, got 1"),
        ("mixtral", [[0, 1], [0, 1], [1, 1]], None, "must be different expert ids in"),
        ("mixtral", [[0, 1], [0, 1], [1, 8]], None, "must be different expert ids in"),
        ("mixtral", [[0, 1], [0, 1], [1, -1]], None, "must be different expert ids in"),
        ("mixtral", [[0, 1], [0, 1]], None, "one entry for each of the 3 MoE layers, got 2 and 3"),
        ("mixtral", [[0, 1]] * 3, [{}, {}, {2: [2, 3]}], "members has expert 2, which is not kept"),
        ("mixtral", [[0, 1]] * 3, [{}, {}, {1: [1, 9]}], "members of expert 1 must be different expert ids"),
        ("mixtral", [[0, 1]] * 3, [{}, {}, {1: []}], "members of expert 1 must be different expert ids"),
        (
            "deepseek_v3",
            [[0, 1, 4, 5], [0, 1, 2, 4]],
            None,
            "expert 2 of routing group 0 would be in group 1",
        ),
        (
            "deepseek_v3",
            [[0, 1, 4, 5], [4, 5, 0, 1]],
            None,
            "expert 4 of routing group 1 would be in group 0",
        ),
    ],
)
def test_wrong_arguments_leave_the_model_untouched(family, kept, members, message, untouched):
    moe = analyze(untouched(make_model(family)))
    plan = plan_slices(moe, [len(kept[0])] * len(moe.layers))
    with pytest.raises(ValueError, match=message):
        plan.apply(kept, members)
    assert [layer.num_experts for layer in moe.layers] == [E] * len(moe.layers)


def test_planning_changes_nothing(untouched):
    state = torch.get_rng_state()
    model = untouched(make_model("qwen3_moe"))
    torch.set_rng_state(state)
    plan_slices(analyze(model), [4, 5, 6])
    assert torch.equal(torch.get_rng_state(), state)


def test_plan_applies_once():
    moe = analyze(make_model("mixtral"))
    plan = plan_slices(moe, [2, 2, 2])
    plan.apply([[0, 1]] * 3)
    with pytest.raises(ValueError, match="applied already"):
        plan.apply([[0, 1]] * 3)


def test_order_of_kept_is_the_new_order():
    model = make_model("mixtral")
    before = model.model.layers[1].mlp.experts.down_proj.detach().clone()
    expected = logits(model)
    plan_and_apply(model, [list(reversed(range(E)))] * 3)  # all experts, other names
    assert torch.equal(model.model.layers[1].mlp.experts.down_proj, before.flip(0))
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3", "ernie4_5_moe", "dbrx"])
def test_means_of_members(family, dtype):
    model = make_model(family).to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moe = analyze(model)
    kept = [kept_ids(E, layer.n_group, 4) for layer in moe.layers]
    groups = {kept[0][1]: [kept[0][1], 0, 7], kept[0][3]: [2, 6]}
    specs = {layer.name: layer.tensors for layer in moe.layers}
    plan_and_apply(model, kept, [groups] + [{}] * (len(kept) - 1))
    state = model.state_dict()
    for number, layer in enumerate(moe.layers):
        for spec in specs[layer.name]:
            old = before[spec.name].movedim(spec.axis, 0)
            new = state[spec.name].movedim(spec.axis, 0)
            assert new.dtype == old.dtype
            old = old.reshape(E, -1)
            new = new.reshape(4, -1)
            for position, expert in enumerate(kept[number]):
                group = groups.get(expert) if number == 0 else None
                expected = old[expert]
                if group is not None:
                    expected = (sum(old[other].double() for other in group) / len(group)).to(old.dtype)
                    torch.testing.assert_close(
                        new[position], expected, rtol=4e-3 if dtype == torch.bfloat16 else 1e-6, atol=1e-7
                    )
                else:
                    assert torch.equal(new[position], expected), spec.name


def test_mean_of_one_other_expert_is_that_expert():
    model = make_model("mixtral")
    before = model.model.layers[0].mlp.gate.weight.detach().clone()
    plan_and_apply(model, [[0, 1]] * 3, [{1: [5]}, {}, {}])
    assert torch.equal(model.model.layers[0].mlp.gate.weight, before[[0, 5]])


def test_parameters_keep_dtype_and_requires_grad_and_drop_gradients():
    model = make_model("gpt_oss").to(torch.bfloat16)
    model.model.layers[0].mlp.experts.down_proj.requires_grad_(False)
    weight = model.model.layers[0].mlp.router.weight
    weight.grad = torch.ones_like(weight)
    plan_and_apply(model, [[0, 1, 2]] * 3)
    experts, router = model.model.layers[0].mlp.experts, model.model.layers[0].mlp.router
    assert not experts.down_proj.requires_grad and experts.gate_up_proj.requires_grad
    assert experts.down_proj.dtype == torch.bfloat16
    assert router.weight.grad is None and router.weight.is_leaf
    assert all(
        tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in (experts.down_proj, router.weight)
    )


def test_correction_bias_keeps_float32_in_a_bfloat16_model():
    model = make_model("deepseek_v3").to(torch.bfloat16)
    gate = model.model.layers[1].mlp.gate
    gate.e_score_correction_bias = gate.e_score_correction_bias.float() + 1e-4
    before = gate.e_score_correction_bias.clone()
    plan_and_apply(model, [[0, 2, 4, 6]] * 2)
    assert gate.e_score_correction_bias.dtype == torch.float32
    assert torch.equal(gate.e_score_correction_bias, before[[0, 2, 4, 6]])


def test_tied_expert_tensors_stay_tied():
    class Tied(MixtralForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            for layer in self.model.layers:
                layer.mlp.gate.shadow = layer.mlp.gate.weight

    model = Tied(make_config("mixtral"))
    plan_and_apply(model, [[1, 4]] * 3)
    gate = model.model.layers[2].mlp.gate
    assert gate.shadow is gate.weight and gate.weight.shape == (2, H)


def test_slicing_twice_is_slicing_once():
    once, twice = make_model("mixtral"), make_model("mixtral")
    plan_and_apply(once, [[6, 2, 5]] * 3)
    moe = plan_and_apply(twice, [[0, 2, 4, 5, 6]] * 3)
    plan_slices(moe, [3, 3, 3]).apply([[4, 1, 3]] * 3)  # the same analysis serves on
    for name, tensor in once.state_dict().items():
        assert torch.equal(tensor, twice.state_dict()[name])
    assert once.config.to_json_string() == twice.config.to_json_string()


def test_experts_of_a_nested_text_config():
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    text = {**BASE, "num_experts": E, "moe_intermediate_size": I, "head_dim": 8}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": H}
    vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    model = Qwen3VLMoeForConditionalGeneration(
        Qwen3VLMoeConfig(text_config=text, vision_config=vision)
    ).eval()
    randomize(model)
    moe = plan_and_apply(model, [[1, 2, 3, 6, 7]] * 3)
    assert moe.config is model.config.text_config and moe.config.num_local_experts == 5
    assert moe.expert_count_keys == ["text_config.num_local_experts"]
    assert moe.layers[0].name == "model.language_model.layers.0.mlp"
    assert torch.isfinite(logits(model)).all()


def test_copies_of_the_config_in_modules_follow():
    model = make_model("mixtral")
    model.model.layers[1].mlp.experts.config = copy.deepcopy(model.config)
    plan_and_apply(model, [[0, 1, 2]] * 3)
    assert model.model.layers[1].mlp.experts.config.num_local_experts == 3
    assert model.config.num_local_experts == model.config.num_experts == 3

# SPDX-License-Identifier: Apache-2.0
"""Transformers computes its experts from packed weights: the experts implementation "stun_ext".

The weights of a module's experts leave its parameters and are held beside them, packed; routing, activation, biases and
norms stay the module's own. So whatever reads the dense weights behind our back fails loudly, as they are not there.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ExpertsInterface

from stun_ext import ops
from stun_ext.expert_function import expert_function
from stun_ext.models import analyze, check_experts_interface, check_prunable
from stun_ext.packed_file import pack_or_keep

IMPLEMENTATION = "stun_ext"
_ATTRIBUTE = "_stun_ext_experts"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class SparsifyReport:
    """What `sparsify` did.

    Attributes:
        num_matrices: Matrices of experts.
        num_packed: Those that were packed; the others have fewer than 15% zeros, and stay dense.
        dense_bytes: Bytes of the experts' matrices before.
        packed_bytes: Bytes of the same matrices now.
    """

    num_matrices: int
    num_packed: int
    dense_bytes: int
    packed_bytes: int


class PackedExperts:
    """The experts' matrices of one module: for each expert an `ops.PackedMatrix` or a dense tensor [rows, columns].

    Attributes:
        up: Gate and up projection in one matrix, as the module has them, or the up projection alone.
        down: Down projection.
    """

    def __init__(self, up: Sequence[Any], down: Sequence[Any]) -> None:
        self.up, self.down = tuple(up), tuple(down)
        self._block: ops.Experts | None = None
        self._made_for: object = ()  # nothing yet

    def block(self, module: Any) -> ops.Experts | None:
        """The experts for `ops.expert_forward`, made at the first call and whenever the module's biases have moved.

        Returns:
            None if the core does not know the module's function.
        """
        name = "gate_up_proj_bias" if module.has_gate else "up_proj_bias"
        biases = [getattr(module, name), module.down_proj_bias] if module.has_bias else [None, None]
        made_for = [None if bias is None else (bias.data_ptr(), bias.dtype) for bias in biases]
        if made_for != self._made_for:
            self._block, function = None, expert_function(module)
            if function is not None:
                function |= {"up_bias": biases[0], "down_bias": biases[1]}
                self._block = ops.Experts(self.up, self.down, **function)
            self._made_for = made_for
        return self._block

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices."""
        return sum(matrix.nbytes for matrix in (*self.up, *self.down))

    @property
    def num_packed(self) -> int:
        """How many matrices are packed."""
        return sum(isinstance(matrix, ops.PackedMatrix) for matrix in (*self.up, *self.down))

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedExperts:
        return self  # nothing in it changes

    def __reduce__(self) -> NoReturn:
        raise TypeError("[stun_ext] packed experts cannot be pickled; use stun-ext pack and from_pretrained")


def sparsify(
    model: PreTrainedModel, *, progress: Callable[[str, int, int], None] | None = None
) -> SparsifyReport:
    """Packs the routed experts of a pruned model in place, and lets Transformers compute with the packed weights.

    From then on the model is for inference on the CPU: its parameters need no gradient, the experts' dense weights are
    freed (one layer at a time), training raises, and saving does. Activations may be float32, float16 or bfloat16,
    whatever the weights are. Weights are exact (-0.0 counts as 0); products are summed in float32.

    Args:
        model: Any model of Transformers, on the CPU, whose family honours experts implementations.
        progress: Called with (phase, done, total).

    Returns:
        Bytes before and after.

    Raises:
        ValueError: No routed experts, a family that computes its experts itself, a model that is not in host memory,
            quantised, wrapped or packed already. Nothing has been changed.
    """
    if is_packed(model):
        raise ValueError("[sparsify] the experts are packed already")
    check_prunable(model)
    moe = analyze(model)
    check_experts_interface(moe, "sparsify")
    for layer in moe.layers:
        for matrix in layer.matrices:
            parameter = matrix.parameter
            if parameter.device.type != "cpu" or parameter.dtype not in _DTYPES:
                raise ValueError(
                    f"[sparsify] {layer.experts_name}.{matrix.name} must be float32, float16 or bfloat16 on the CPU, "
                    f"got {parameter.dtype} on {parameter.device}"
                )
    dense_bytes = packed_bytes = num_matrices = num_packed = 0
    for done, layer in enumerate(moe.layers):
        if progress is not None:
            progress("sparsify", done, len(moe.layers))
        up, down = layer.matrices
        dense_bytes += up.parameter.nbytes + down.parameter.nbytes
        packed = PackedExperts(
            *([_packed(matrix.expert(e)) for e in range(layer.num_experts)] for matrix in (up, down))
        )
        for matrix in (up, down):
            del layer.experts._parameters[matrix.name]
        del up, down, matrix
        attach(layer.experts, packed)
        packed_bytes, num_packed = packed_bytes + packed.nbytes, num_packed + packed.num_packed
        num_matrices += 2 * layer.num_experts
    if progress is not None:
        progress("sparsify", len(moe.layers), len(moe.layers))
    use_packed_experts(model)
    _return_freed_memory()
    return SparsifyReport(num_matrices, num_packed, dense_bytes, packed_bytes)


def _packed(matrix: torch.Tensor) -> Any:
    # Pruning by a product with a mask leaves -0.0, which packing would keep; -0.0 + 0.0 is 0.0, all else stays.
    matrix = (matrix + 0.0).contiguous()
    return pack_or_keep(matrix)


def packed_experts(module: nn.Module) -> PackedExperts | None:
    """The packed weights of an experts module; None if it has none."""
    found = module.__dict__.get(_ATTRIBUTE)
    return found if isinstance(found, PackedExperts) else None


def is_packed(model: nn.Module) -> bool:
    """Whether experts of the model are packed."""
    return any(packed_experts(module) is not None for module in model.modules())


def attach(module: nn.Module, packed: PackedExperts) -> None:
    """Gives an experts module, whose parameters for them are gone, its packed weights."""
    setattr(module, _ATTRIBUTE, packed)
    module.register_state_dict_pre_hook(_refuse_state_dict)  # type: ignore[no-untyped-call]


def use_packed_experts(model: PreTrainedModel) -> None:
    """Lets the model, all of whose experts are packed, compute with them, for inference alone."""
    model.requires_grad_(False)
    ExpertsInterface.register(IMPLEMENTATION, experts_forward)
    model.set_experts_implementation(IMPLEMENTATION)


def _refuse_state_dict(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    raise ValueError(
        "[stun_ext] the experts of this model are packed, so it has no dense state_dict and cannot be saved; to make a "
        "packed checkpoint of a dense one, use stun-ext pack CHECKPOINT OUT (stun-ext unpack turns it back)"
    )


def experts_forward(
    self: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The experts implementation: what Transformers calls as the forward of an experts module.

    Args:
        self: The experts module.
        hidden_states: Tokens, [T, H], on the CPU.
        top_k_index: Experts of each token, [T, k]; ids from `num_experts` on stand for experts of another process.
        top_k_weights: Their routing weights, [T, k].

    Returns:
        [T, H] of the tokens' dtype; weighted outputs are summed in float32.

    Raises:
        ValueError: The module's experts are not packed, gradients are wanted, or the tokens are not on the CPU.
    """
    packed = packed_experts(self)
    if packed is None:
        raise ValueError(
            f"[stun_ext] the experts of {type(self).__name__} are not packed: call stun_ext.sparsify(model), which "
            f'sets experts_implementation="{IMPLEMENTATION}" itself'
        )
    if self.training or (torch.is_grad_enabled() and hidden_states.requires_grad):
        raise ValueError(
            "[stun_ext] packed experts cannot be trained; call model.eval(), or train before packing"
        )
    if hidden_states.device.type != "cpu":
        raise ValueError(
            f"[stun_ext] packed experts compute on the CPU, got tokens on {hidden_states.device}"
        )
    block = packed.block(self)
    if block is not None:
        return ops.expert_forward(hidden_states, top_k_index.long(), top_k_weights, block)
    return _by_module(self, packed, hidden_states, top_k_index, top_k_weights)


def _by_module(
    module: Any,
    packed: PackedExperts,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """The same where only the module knows its function: expert by expert, with our products."""
    num_experts, top_k = len(packed.up), top_k_index.shape[-1]
    ids = top_k_index.reshape(-1)
    order = torch.argsort(ids, stable=True)  # pairs of token and expert, expert by expert
    counts = torch.bincount(ids.clamp(max=num_experts), minlength=num_experts + 1)[:num_experts].tolist()
    order = order[: sum(counts)]
    tokens = order // top_k
    output = _grouped_experts(module, packed, hidden_states[tokens], counts)
    weighted = output.float() * top_k_weights.reshape(-1)[order, None].float()
    result = torch.zeros(hidden_states.shape, dtype=torch.float32).index_add_(0, tokens, weighted)
    return result.to(hidden_states.dtype)


def _grouped_experts(
    module: Any, packed: PackedExperts, x: torch.Tensor, counts: Sequence[int]
) -> torch.Tensor:
    """Each expert's output for its own rows of x [S, H], which lie expert by expert; `counts` sum to S."""
    output = torch.empty_like(x)
    start = 0
    for expert, count in enumerate(counts):
        if count == 0:
            continue
        rows = slice(start, start + count)
        start += count
        hidden = _linear(x[rows], packed.up[expert])
        if module.has_bias:
            bias = module.gate_up_proj_bias if module.has_gate else module.up_proj_bias
            hidden = hidden + bias[expert]
        hidden = module._apply_gate(hidden) if module.has_gate else module.act_fn(hidden)
        result = _linear(hidden.to(x.dtype), packed.down[expert])
        if module.has_bias:
            result = result + module.down_proj_bias[expert]
        if getattr(module, "has_post_expert_norm", False):
            result = module.post_expert_norm(result)
        output[rows] = result
    return output


def _linear(x: torch.Tensor, weight: Any) -> torch.Tensor:
    if isinstance(weight, ops.PackedMatrix):
        return ops.packed_matmul(x, weight)
    return ops.dense_matmul(x, weight)


def _return_freed_memory() -> None:
    """Lets the C library give freed pages back, of which glibc keeps those of blocks up to 32 MiB."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)

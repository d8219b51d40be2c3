# SPDX-License-Identifier: Apache-2.0
"""What the name of a stored tensor says of experts, and what part of it is whose."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from stun_ext.safetensors_file import StoredTensor

_SINGLE = re.compile(r"^(?P<block>.+)\.experts\.(?P<expert>\d+)\.(?P<leaf>.+)$")
_FUSED = re.compile(r"^(?P<block>.+)\.experts\.(?P<leaf>[^.\d].*)$")
# Of a quantised tensor: what scales its numbers, which is no weight itself.
_SCALE = re.compile(r"(?:scales?|scale_inv|zeros?|zero_point|g_idx|absmax|_shape|qzeros|amax)(?:_\d+)?$")


@dataclass(frozen=True)
class OneExpert:
    """A tensor of a single expert, whose number is in its name.

    Attributes:
        block: Name of the block in the checkpoint.
        expert: The number.
        leaf: The name after the number: "down_proj.weight".
    """

    block: str
    expert: int
    leaf: str


@dataclass(frozen=True)
class ExpertAxis:
    """A tensor with a dimension of size factor·E + extra that is indexed by experts; see `models.schema.ExpertTensor`.

    Attributes:
        block: Name of the block in the checkpoint.
        axis: The dimension.
        factor: Entries per expert.
        extra: Entries after the experts, which stay.
        in_experts: Whether it is of the experts themselves, rather than of their router.
    """

    block: str
    axis: int
    factor: int = 1
    extra: int = 0
    in_experts: bool = False


Part = OneExpert | ExpertAxis


def one_expert(name: str) -> OneExpert | None:
    """What a name such as "model.layers.3.mlp.experts.17.up_proj.weight" says; None for others."""
    match = _SINGLE.match(name)
    return match and OneExpert(match["block"], int(match["expert"]), match["leaf"])


def block_of(name: str) -> str | None:
    """The block of a tensor below a module named "experts"; None for others."""
    match = _SINGLE.match(name) or _FUSED.match(name)
    return match and match["block"]


def renamed(name: str, part: OneExpert, numbers: Mapping[int, int], num_experts: int) -> str | None:
    """An expert's tensor under its new number; None when the expert goes. Extra (zero) experts follow the others.

    Args:
        name: The tensor's name.
        part: What it says.
        numbers: Old number -> new one, of the experts that stay.
        num_experts: Number of experts before.
    """
    if part.expert >= num_experts:
        number: int | None = part.expert - num_experts + len(numbers)
    else:
        number = numbers.get(part.expert)
    if number is None:
        return None
    return f"{name[: -len(part.leaf) - len(str(part.expert)) - 1]}{number}.{part.leaf}"


def num_weights(name: str, tensor: StoredTensor) -> int:
    """Weights that a stored tensor stands for: two in each byte of packed 4-bit blocks, none in scales."""
    if is_scale(name):
        return 0
    packed = tensor.dtype == "U8" and name.endswith("_blocks")
    return math.prod(tensor.shape) * (2 if packed else 1)


def is_scale(name: str) -> bool:
    """Whether a tensor scales the numbers of a quantised one, by its name."""
    return _SCALE.search(name) is not None

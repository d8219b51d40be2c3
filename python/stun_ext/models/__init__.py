# SPDX-License-Identifier: Apache-2.0
"""What differs between model families, behind one interface: finding, counting, removing experts."""

from .analysis import analyze as analyze
from .guards import check_prunable as check_prunable
from .linears import decoder_linears as decoder_linears
from .loading import from_pretrained as from_pretrained
from .moe import ExpertMatrix as ExpertMatrix
from .moe import MoELayer as MoELayer
from .moe import MoEModel as MoEModel
from .refusals import slicing_refusals as slicing_refusals
from .routing import legal_expert_counts as legal_expert_counts
from .slicing import SlicePlan as SlicePlan
from .slicing import plan_slices as plan_slices

__all__ = [
    "ExpertMatrix",
    "MoELayer",
    "MoEModel",
    "SlicePlan",
    "analyze",
    "check_prunable",
    "decoder_linears",
    "from_pretrained",
    "legal_expert_counts",
    "plan_slices",
    "slicing_refusals",
]

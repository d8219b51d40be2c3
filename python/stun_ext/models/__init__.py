# SPDX-License-Identifier: Apache-2.0
"""What differs between model families, behind one interface: finding, counting, removing experts."""

from .analysis import analyze as analyze
from .guards import check_prunable as check_prunable
from .linears import decoder_linears as decoder_linears
from .loading import empty_model as empty_model
from .loading import from_pretrained as from_pretrained
from .moe import ExpertMatrix as ExpertMatrix
from .moe import MoELayer as MoELayer
from .moe import MoEModel as MoEModel
from .moe import RoutedLayer as RoutedLayer
from .refusals import slicing_refusals as slicing_refusals
from .routers import StoredRouter as StoredRouter
from .routers import stored_routers as stored_routers
from .routing import legal_expert_counts as legal_expert_counts
from .slicing import SlicePlan as SlicePlan
from .slicing import plan_slices as plan_slices
from .stored_experts import StoredExperts as StoredExperts
from .stored_experts import check_experts_interface as check_experts_interface
from .stored_experts import stored_experts as stored_experts

__all__ = [
    "ExpertMatrix",
    "MoELayer",
    "MoEModel",
    "RoutedLayer",
    "SlicePlan",
    "StoredExperts",
    "StoredRouter",
    "analyze",
    "check_experts_interface",
    "check_prunable",
    "decoder_linears",
    "empty_model",
    "from_pretrained",
    "legal_expert_counts",
    "plan_slices",
    "slicing_refusals",
    "stored_experts",
    "stored_routers",
]

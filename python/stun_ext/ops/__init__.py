# SPDX-License-Identifier: Apache-2.0
"""The algorithms of the compiled core, as typed functions on arrays.

Every function takes NumPy arrays or torch tensors and returns the kind of its first array argument; a torch
result lies on that argument's device. Masks of CUDA tensors are made on their device, on torch's current
stream, where the library was built with CUDA (`build_info`); these functions wait for it, to return counts and
raise errors. Other operations and devices go through host memory, ``requires_grad`` is detached, and any other
CPU object with ``__dlpack__`` is read too (the result is then NumPy). Matrices are never copied on the way in:
strided, transposed and read-only ones are read where they lie. bfloat16 comes as torch, as
``ml_dtypes.bfloat16``, or as its bits in uint16 together with ``dtype="bfloat16"``.

All functions check their arguments before any work: ``TypeError`` for a wrong kind or dtype, ``ValueError``
for a wrong shape or value, with a message such as ``[cut_tree] n_clusters must be in [1, 8], got 9``. They
release the GIL, may be called from several threads at once, and give the same bits for every number of
threads and, but for the last bits of matrix products, every instruction set.

"STUN" below is Lee et al., ACL 2025, arXiv 2409.06211; "Wanda" is Sun et al., ICLR 2024, arXiv 2306.11695.
"""

from stun_ext.ops._arrays import BitsName as BitsName
from stun_ext.ops.clusters import Allocation as Allocation
from stun_ext.ops.clusters import allocate_experts as allocate_experts
from stun_ext.ops.clusters import cut_tree as cut_tree
from stun_ext.ops.clusters import linkage as linkage
from stun_ext.ops.clusters import star_clusters as star_clusters
from stun_ext.ops.clusters import star_clusters_count as star_clusters_count
from stun_ext.ops.clusters import star_clusters_rows as star_clusters_rows
from stun_ext.ops.distances import coactivation_distances as coactivation_distances
from stun_ext.ops.distances import mixed_distances as mixed_distances
from stun_ext.ops.distances import pairwise_distances as pairwise_distances
from stun_ext.ops.experts import Experts as Experts
from stun_ext.ops.experts import expert_forward as expert_forward
from stun_ext.ops.library import build_info as build_info
from stun_ext.ops.library import cpu_info as cpu_info
from stun_ext.ops.library import num_threads as num_threads
from stun_ext.ops.library import set_num_threads as set_num_threads
from stun_ext.ops.masks import apply_mask_ as apply_mask_
from stun_ext.ops.masks import nm_mask as nm_mask
from stun_ext.ops.masks import nm_prune_ as nm_prune_
from stun_ext.ops.masks import wanda_mask as wanda_mask
from stun_ext.ops.masks import wanda_prune_ as wanda_prune_
from stun_ext.ops.masks import wanda_scores as wanda_scores
from stun_ext.ops.packed import PackedMatrix as PackedMatrix
from stun_ext.ops.packed import dense_matmul as dense_matmul
from stun_ext.ops.packed import pack as pack
from stun_ext.ops.packed import packed_from_buffers as packed_from_buffers
from stun_ext.ops.packed import packed_matmul as packed_matmul
from stun_ext.ops.packed import unpack as unpack

__all__ = [
    "Allocation",
    "Experts",
    "PackedMatrix",
    "allocate_experts",
    "apply_mask_",
    "build_info",
    "coactivation_distances",
    "cpu_info",
    "cut_tree",
    "dense_matmul",
    "expert_forward",
    "linkage",
    "mixed_distances",
    "nm_mask",
    "nm_prune_",
    "num_threads",
    "pack",
    "packed_from_buffers",
    "packed_matmul",
    "pairwise_distances",
    "set_num_threads",
    "star_clusters",
    "star_clusters_count",
    "star_clusters_rows",
    "unpack",
    "wanda_mask",
    "wanda_prune_",
    "wanda_scores",
]

# SPDX-License-Identifier: Apache-2.0
"""stun_ext: structured-then-unstructured pruning of Mixture-of-Experts models (STUN, arXiv 2409.06211).

``stun_ext.prune(model)`` removes whole experts, then zeroes weights inside those that remain. The low-level functions
are in ``stun_ext.ops``. Nothing heavy is imported until it is used.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stun_ext import ops as ops
    from stun_ext.checkpoint import save_pretrained as save_pretrained
    from stun_ext.clustering import RouterClusters as RouterClusters
    from stun_ext.clustering import cluster_router as cluster_router
    from stun_ext.experts_backend import sparsify as sparsify
    from stun_ext.loading import from_pretrained as from_pretrained
    from stun_ext.models import analyze as analyze
    from stun_ext.ops import cpu_info as cpu_info
    from stun_ext.packing import pack_checkpoint as pack_checkpoint
    from stun_ext.pipeline import collect_statistics as collect_statistics
    from stun_ext.pipeline import prune as prune
    from stun_ext.recipe import Recipe as Recipe
    from stun_ext.report import PruneReport as PruneReport
    from stun_ext.routers import model_routers as model_routers
    from stun_ext.statistics import Statistics as Statistics
    from stun_ext.streaming import prune_checkpoint as prune_checkpoint
    from stun_ext.unpacking import unpack_checkpoint as unpack_checkpoint

try:
    __version__ = version("stun_ext")
except PackageNotFoundError:  # the source tree without an installation
    __version__ = "0+unknown"

_LAZY = {
    "analyze": "stun_ext.models",
    "cluster_router": "stun_ext.clustering",
    "collect_statistics": "stun_ext.pipeline",
    "cpu_info": "stun_ext.ops",
    "from_pretrained": "stun_ext.loading",
    "model_routers": "stun_ext.routers",
    "ops": "",
    "pack_checkpoint": "stun_ext.packing",
    "prune": "stun_ext.pipeline",
    "prune_checkpoint": "stun_ext.streaming",
    "PruneReport": "stun_ext.report",
    "Recipe": "stun_ext.recipe",
    "RouterClusters": "stun_ext.clustering",
    "save_pretrained": "stun_ext.checkpoint",
    "sparsify": "stun_ext.experts_backend",
    "Statistics": "stun_ext.statistics",
    "unpack_checkpoint": "stun_ext.unpacking",
}

__all__ = [
    "__version__",
    *_LAZY,
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'stun_ext' has no attribute {name!r}")
    module = _LAZY[name]
    value = getattr(import_module(module), name) if module else import_module(f"stun_ext.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

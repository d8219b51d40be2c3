# SPDX-License-Identifier: Apache-2.0
"""Pruning a checkpoint from directory to directory without building the model.

``shards`` reads headers, ``names`` and ``families`` find the experts (``parts``, ``layout``), ``plan`` settles every
byte, ``copy`` and ``output`` write them, ``prune`` does it all.
"""

from .prune import prune_checkpoint as prune_checkpoint

__all__ = ["prune_checkpoint"]

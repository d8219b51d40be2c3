# SPDX-License-Identifier: Apache-2.0
"""The compiled library: its threads, processor and build."""

from __future__ import annotations

from typing import Any

from stun_ext import _core


def num_threads() -> int:
    """Threads of the core: by `set_num_threads`, else STUN_EXT_NUM_THREADS, else the usable processors."""
    return _core.num_threads()


def set_num_threads(n: int) -> None:
    """Sets the threads of the core for the whole process; results do not depend on it.

    Args:
        n: At least 1.

    Raises:
        ValueError: n < 1.
    """
    _core.set_num_threads(n)


def cpu_info() -> dict[str, Any]:
    """The processor as the core sees it.

    Returns:
        ``model`` (its name), ``features`` (instruction set extensions), ``supported`` (instruction sets with
        kernels that run here, slowest first) and ``isa`` (the one in use: STUN_EXT_ISA, else the fastest).

    Raises:
        RuntimeError: STUN_EXT_ISA names something that is unknown or not supported here.
    """
    model, features, supported, isa = _core.cpu_info()
    return {"model": model, "features": features, "supported": supported, "isa": isa}


def build_info() -> dict[str, Any]:
    """Version, CUDA runtime and devices, and threads of the core that is loaded."""
    return {
        "version": _core.__version__,
        "cuda": _core.cuda_build_info(),
        "cuda_devices": _core.cuda_device_count(),
        "num_threads": _core.num_threads(),
    }

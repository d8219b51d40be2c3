# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of stun_ext.ops share: pinned threads, interleaved timing, the machine, a table."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Threads are pinned before anything starts a pool.
_parser = argparse.ArgumentParser()
_parser.add_argument("--threads", type=int, default=1, help="threads of every candidate (1)")
_parser.add_argument("--seconds", type=float, default=3.0, help="time for the runs of a row (3)")
_parser.add_argument("--large", action="store_true", help="the rows that take long")
_parser.add_argument("--huge", action="store_true", help="100,000 rows (low memory)")
_parser.add_argument("--only", help="only the cases whose label holds this (low memory)")
_parser.add_argument("--directory", help="where files of rows are kept for the next run (low memory)")
_parser.add_argument(
    "--generate", action="store_true", help="write the files of rows, run nothing (low memory)"
)
_parser.add_argument("--sizes", type=int, nargs="+", help="only these n, where a benchmark has several")
_parser.add_argument("--wall", action="store_true", help="wall time with one thread, too: a quiet machine")
_parser.add_argument(
    "--no-baselines", dest="baselines", action="store_false", help="ours alone (masks, low memory)"
)
OPTIONS = _parser.parse_args()
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "STUN_EXT_NUM_THREADS"):
    os.environ[_name] = str(OPTIONS.threads)
os.environ["OPENBLAS_THREAD_TIMEOUT"] = "4"  # see PAUSE

import numpy as np  # noqa: E402
import scipy  # noqa: E402
import torch  # noqa: E402

from stun_ext import ops  # noqa: E402

torch.set_num_threads(OPTIONS.threads)


# With one thread the processor's time says the same as the clock, and stays true on a busy machine; but some kernels
# count it by ticks of milliseconds.
_IS_CPU_TIME = OPTIONS.threads == 1 and not OPTIONS.wall
CLOCK = time.process_time if _IS_CPU_TIME else time.perf_counter
CLOCK_NAME = "CPU time" if _IS_CPU_TIME else "wall time"


# Thread pools spin for a while when their work is done, and would take the cores of whoever is measured next.
PAUSE = 0.0 if OPTIONS.threads == 1 else 0.01


def measure(
    candidates: dict[str, Callable[[], object]], pause: float = PAUSE
) -> dict[str, tuple[float, float]]:
    """Median and interquartile range in seconds; runs are interleaved, so that noise hits all alike.

    Candidates without pools that spin need no pause, behind which short runs would find cold caches and a slow clock.
    """
    runs: dict[str, list[float]] = {name: [] for name in candidates}
    for function in candidates.values():
        function()  # warm
    deadline = time.perf_counter() + OPTIONS.seconds
    while len(next(iter(runs.values()))) < 3 or time.perf_counter() < deadline:
        for name, function in candidates.items():
            if pause > 0:
                time.sleep(pause)
            start = CLOCK()
            function()
            runs[name].append(CLOCK() - start)
    result = {}
    for name, seconds in runs.items():
        low, median, high = statistics.quantiles(seconds, n=4)
        result[name] = (median, high - low)
    return result


def machine() -> str:
    """Processor, libraries, date and command, as a Markdown list."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text = cpuinfo.read_text()
        name = re.search(r"model name\s*: (.*)", text)
        family = re.search(r"cpu family\s*: (\d+)\nmodel\s*: (\d+)", text)
        model = (name[1] if name else model) + (f" (family {family[1]}, model {family[2]})" if family else "")
    load = f"; load average at the start {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    forced = f"STUN_EXT_ISA={os.environ['STUN_EXT_ISA']} " if "STUN_EXT_ISA" in os.environ else ""
    command = f"{forced}python {Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip()
    versions = f"numpy {np.__version__}, scipy {scipy.__version__}, torch {torch.__version__.split('+')[0]}"
    return (
        f"- {model}, {os.cpu_count()} cores; {OPTIONS.threads} thread(s) each, {CLOCK_NAME}{load}\n"
        f"- stun_ext {ops.build_info()['version']}, {versions}, Python {platform.python_version()}\n"
        f"- {datetime.date.today().isoformat()}, `{command}`\n"
    )


def table(title: str, note: str, header: list[str], rows: list[list[str]]) -> None:
    """Prints a section of Markdown."""
    print(f"# {title}\n\n{machine()}\n{note}\n")
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def milliseconds(timing: tuple[float, float]) -> str:
    """Median and, in brackets, interquartile range."""
    return f"{timing[0] * 1e3:.3g} ({timing[1] * 1e3:.2g})"

# SPDX-License-Identifier: Apache-2.0
"""The layering check lets the repository pass, and catches each kind of violation by file and line."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def check_layers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_layers", REPOSITORY / ".ci" / "check_layers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small repository that obeys every rule."""
    files = {
        "cpp/include/stun_ext/view.hpp": "#include <cstdint>\n",
        "cpp/include/stun_ext/stun_ext.h": "#include <stdint.h>\n",
        "cpp/src/view.cpp": '#include "stun_ext/view.hpp"\n#include "detail.hpp"\n#include <vector>\n',
        "cpp/src/detail.hpp": "#include <thread>\n",
        "cpp/src/kernels/dot.hpp": "#include <cstddef>\n",
        "cpp/src/kernels/dot_scalar.cpp": '#include <algorithm>\n#include "../detail.hpp"\n',
        "cpp/src/c/mask.cpp": '#include <vector>\n#include "stun_ext/stun_ext.h"\n'
        '#include "stun_ext/view.hpp"\n#include "status.hpp"\n',
        "cpp/src/c/status.hpp": "#include <sstream>\n",
        "cpp/src/executor.cpp": "#include <sched.h>\n",
        "cpp/src/kernels/dot_avx2.cpp": '#include <immintrin.h>\n#include "dot.hpp"\n',
        "cuda/include/stun_ext/cuda/runtime.hpp": "#include <string>\n",
        "cuda/src/mask.cu": "#include <cuda_runtime.h>\n#include <cub/cub.cuh>\n"
        '#include "stun_ext/view.hpp"\n',
        "bindings/module.cpp": '#include <pybind11/pybind11.h>\n#include "stun_ext/cuda/runtime.hpp"\n'
        '#include "cast.hpp"\n',
        "bindings/cast.hpp": "#include <memory>\n",
        "python/stun_ext/__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
        "    from stun_ext.pipeline import prune\n"
        "def __getattr__(name):\n    from stun_ext import pipeline\n    return pipeline\n",
        "python/stun_ext/ops/__init__.py": "from stun_ext.ops.masks import wanda_mask\n",
        "python/stun_ext/ops/masks.py": "import numpy as np\nfrom stun_ext import _core\n",
        "python/stun_ext/recipe.py": "import json\n",
        "python/stun_ext/pipeline.py": "import torch\nfrom stun_ext import models, ops\n",
        "python/stun_ext/plots.py": "import numpy as np\n"
        "def draw():\n    from matplotlib.figure import Figure\n    return Figure()\n",
        "python/stun_ext/models/__init__.py": "from stun_ext.models.slicing import plan\n",
        "python/stun_ext/models/slicing.py": "import torch\nfrom . import __init__\n",
        "python/stun_ext/cli/__init__.py": "from stun_ext import demo\nfrom stun_ext.cli import prune\n",
        "python/stun_ext/demo/__init__.py": "from pathlib import Path\n",
        "python/stun_ext/demo/comparison.py": "import torch\n",
        "python/stun_ext/safetensors_file.py": "import json\n",
        "python/stun_ext/streaming/__init__.py": "from .prune import prune_checkpoint\n",
        "python/stun_ext/streaming/shards.py": "from stun_ext import safetensors_file\n",
        "python/stun_ext/streaming/copy.py": "import os\nfrom stun_ext.streaming.shards import open_checkpoint\n",
        "python/stun_ext/streaming/prune.py": "import torch\nfrom stun_ext.streaming import copy, shards\n",
        "python/stun_ext/cli/prune.py": "def run():\n    import torch\n    from stun_ext import pipeline\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_this_repository_obeys(check_layers: ModuleType) -> None:
    assert [str(violation) for violation in check_layers.check(REPOSITORY)] == []


def test_a_tree_that_obeys_passes(check_layers: ModuleType, tree: Path) -> None:
    assert [str(violation) for violation in check_layers.check(tree)] == []
    assert check_layers.main([str(tree)]) == 0


@pytest.mark.parametrize(
    ("path", "text", "rule"),
    [
        ("cpp/src/view.cpp", "#include <pybind11/pybind11.h>", "cpp includes the C++ standard library"),
        ("cpp/src/view.cpp", "#  include <Python.h>", "cpp includes the C++ standard library"),
        ("cpp/src/view.cpp", "#include <pthread.h>", "cpp includes the C++ standard library"),
        ("cpp/src/view.cpp", '#include "stun_ext/missing.hpp"', "cpp includes the C++ standard library"),
        ("cpp/src/view.cpp", '#include "stun_ext/cuda/runtime.hpp"', "cpp knows nothing of cuda"),
        ("cpp/include/stun_ext/view.hpp", '#include "detail.hpp"', "cpp includes the C++ standard library"),
        ("cpp/src/kernels/dot_avx2.cpp", "#include <vector>", "a kernel includes intrinsics"),
        ("cpp/src/kernels/dot_avx2.cpp", '#include "../detail.hpp"', "a kernel includes intrinsics"),
        ("cpp/src/kernels/dot.hpp", "#include <algorithm>", "a kernel includes intrinsics"),
        ("cpp/include/stun_ext/stun_ext.h", "#include <stdio.h>", "is read as C"),
        ("cpp/include/stun_ext/stun_ext.h", "#include <vector>", "is read as C"),
        ("cpp/include/stun_ext/stun_ext.h", '#include "stun_ext/view.hpp"', "is read as C"),
        ("cpp/src/c/mask.cpp", '#include "../detail.hpp"', "the C ABI stands on the public headers"),
        ("cpp/src/c/mask.cpp", '#include "detail.hpp"', "the C ABI stands on the public headers"),
        ("cuda/src/mask.cu", "#include <torch/extension.h>", "cuda includes the headers of cpp"),
        ("bindings/module.cpp", "#include <torch/extension.h>", "bindings include public headers"),
        ("bindings/module.cpp", '#include "kernels/dot.hpp"', "bindings include public headers"),
        ("bindings/module.cpp", '#include "../cpp/src/detail.hpp"', "bindings include public headers"),
        ("python/stun_ext/pipeline.py", "import stun_ext._core", "ops/ alone"),
        ("python/stun_ext/pipeline.py", "from stun_ext import _core", "ops/ alone"),
        ("python/stun_ext/pipeline.py", "from . import _core", "ops/ alone"),
        ("python/stun_ext/pipeline.py", "from ._core import wanda_mask", "ops/ alone"),
        (
            "python/stun_ext/pipeline.py",
            "import importlib; importlib.import_module('stun_ext._core')",
            "ops/ alone",
        ),
        ("python/stun_ext/models/slicing.py", "from .. import _core", "ops/ alone"),
        ("python/stun_ext/models/slicing.py", "from ..ops import linkage", "models/ imports nothing"),
        (
            "python/stun_ext/models/slicing.py",
            "def f():\n    from stun_ext import ops",
            "models/ imports nothing",
        ),
        ("python/stun_ext/models/slicing.py", "from stun_ext import pipeline", "pipeline.py is above"),
        ("python/stun_ext/recipe.py", "def f(:", "is not Python"),
        ("python/stun_ext/recipe.py", "from stun_ext.cli import prune", "cli/ is imported by nobody"),
        ("python/stun_ext/__init__.py", "import torch", "must stay light"),
        ("python/stun_ext/__init__.py", "from stun_ext.pipeline import prune", "must stay light"),
        (
            "python/stun_ext/__init__.py",
            "try:\n    import transformers\nexcept ImportError:\n    pass",
            "must stay light",
        ),
        ("python/stun_ext/ops/masks.py", "import torch", "must not load torch at import time"),
        ("python/stun_ext/plots.py", "from matplotlib.figure import Figure", "must not load matplotlib"),
        ("python/stun_ext/plots.py", "def f():\n    import matplotlib.pyplot", "without pyplot"),
        ("python/stun_ext/plots.py", "def f():\n    from matplotlib import pyplot", "without pyplot"),
        (
            "python/stun_ext/pipeline.py",
            "def f():\n    from matplotlib.figure import Figure",
            "plots.py alone",
        ),
        ("python/stun_ext/ops/masks.py", "from stun_ext import models", "ops/ stands on _core alone"),
        ("python/stun_ext/cli/prune.py", "from stun_ext import pipeline", "sit inside the commands"),
        ("python/stun_ext/cli/prune.py", "from stun_ext.demo.comparison import compare", "sit inside"),
        ("python/stun_ext/demo/__init__.py", "import torch", "must not load torch at import time"),
        ("python/stun_ext/cli/prune.py", "class A:\n    import transformers", "sit inside the commands"),
        ("python/stun_ext/cli/prune.py", "def f():\n    from stun_ext import weight_pruning", "cli/ calls"),
        ("python/stun_ext/pipeline.py", "from stun_ext.streaming import copy", "streaming/ is above"),
        ("python/stun_ext/streaming/prune.py", "from stun_ext import pipeline", "pipeline.py is above"),
        ("python/stun_ext/streaming/copy.py", "import torch", "knows files alone"),
        (
            "python/stun_ext/streaming/shards.py",
            "from stun_ext.streaming.prune import prune_checkpoint",
            "knows files",
        ),
        ("python/stun_ext/streaming/shards.py", "from stun_ext import recipe", "knows files alone"),
    ],
)
def test_a_violation_is_caught(check_layers: ModuleType, tree: Path, path: str, text: str, rule: str) -> None:
    (tree / "python/stun_ext/weight_pruning.py").write_text("")
    target = tree / path
    before = target.read_text().count("\n")
    target.write_text(target.read_text() + text + "\n")
    violations = check_layers.check(tree)
    assert any(rule in v.message for v in violations), [str(v) for v in violations]
    assert {v.path for v in violations} == {path}
    assert all(v.line > before for v in violations)
    assert check_layers.main([str(tree)]) == 1


def test_a_folder_that_is_no_checkout_is_refused(check_layers: ModuleType, tmp_path: Path) -> None:
    assert check_layers.main([str(tmp_path)]) == 2

# SPDX-License-Identifier: Apache-2.0
"""The extension's stub says what the extension has; ops needs no torch."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import stun_ext
from stun_ext import _core, ops

PACKAGE = Path(inspect.getfile(stun_ext)).parent


def stub_signatures() -> dict[str, list[str]]:
    tree = ast.parse((PACKAGE / "_core.pyi").read_text())
    return {f.name: [a.arg for a in f.args.args] for f in tree.body if isinstance(f, ast.FunctionDef)}


def module_signatures() -> dict[str, list[str]]:
    functions = {
        name: value
        for name, value in vars(_core).items()
        if callable(value) and not isinstance(value, type) and not name.startswith("__")
    }
    return {
        name: re.findall(r"[(,] ?(\w+):", str(value.__doc__).splitlines()[0].split(" ->")[0])
        for name, value in functions.items()
    }


def test_stub_names_and_parameters() -> None:
    assert stub_signatures() == module_signatures()


def test_stub_declares_the_version() -> None:
    assert "__version__: str" in (PACKAGE / "_core.pyi").read_text()
    assert isinstance(_core.__version__, str)
    assert ops.build_info()["version"] == _core.__version__


def test_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_every_public_function_is_documented() -> None:
    for name in ops.__all__:
        doc = inspect.getdoc(getattr(ops, name))
        assert doc, name
        if inspect.signature(getattr(ops, name)).parameters and name != "Allocation":
            assert "Args:" in doc, name
            assert "Raises:" in doc, name


def test_ops_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, numpy as np; from stun_ext import ops; ops.pairwise_distances(np.eye(3));"
        "assert not {'torch', 'transformers', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_build_info() -> None:
    info = ops.build_info()
    assert set(info) == {"version", "cuda", "cuda_devices", "num_threads"}
    assert info["cuda_devices"] >= 0
    assert isinstance(info["cuda"], str)

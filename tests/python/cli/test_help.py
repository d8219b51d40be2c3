# SPDX-License-Identifier: Apache-2.0
"""Help is complete, agrees with the recipe, and is quick."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
import time

import pytest

from stun_ext.cli.prune import prune
from stun_ext.recipe import Recipe

SETTINGS = dataclasses.fields(Recipe)


@pytest.mark.parametrize("command", [[], ["prune"], ["inspect"], ["eval"], ["cluster"], ["demo"]])
def test_help_and_usage(invoke, command: list[str]) -> None:
    result = invoke(*command, "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.stdout
    assert result.stderr == ""


def test_help_says_the_exit_codes(invoke) -> None:
    text = " ".join(invoke("--help").stdout.split())
    for code in ("0 done", "1 failure", "2 bad usage", "130 interrupted"):
        assert code in text


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_has_a_flag(invoke, setting: dataclasses.Field[object]) -> None:
    """With the recipe's words and choices; not given by default, or it would override a recipe file."""
    text = " ".join(invoke("prune", "--help").stdout.split())
    flag = f" --{setting.name.replace('_', '-')} "
    assert flag in text
    start = text.index(flag)
    assert setting.metadata["help"].split(":")[0].split()[0] in text[start:]
    for choice in setting.metadata["choices"] or ():
        assert choice in text[start:].split(" --", 2)[1]
    assert inspect.signature(prune).parameters[setting.name].default is None


def test_version(invoke) -> None:
    import stun_ext

    result = invoke("--version")
    assert result.exit_code == 0
    assert result.stdout == f"stun-ext {stun_ext.__version__}\n"


@pytest.mark.parametrize("command", ["prune", "cluster"])
def test_help_loads_neither_torch_nor_transformers(command: str) -> None:
    program = (
        f"import sys\nfrom stun_ext.cli import main\nsys.argv = ['stun-ext', '{command}', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'huggingface_hub', 'safetensors', 'datasets', 'yaml'}\n"
        "heavy |= {'matplotlib'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_help_is_quick() -> None:
    """0.25 s on an idle machine; the best of three tries has ten times that here."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "stun_ext.cli", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 2.5


@pytest.mark.parametrize(
    "arguments",
    [
        ["prune"],
        ["prune", "a"],
        ["nosuch"],
        ["cluster"],
        ["cluster", "a.npy", "--k", "x"],
        ["prune", "a", "b", "--nosuch"],
        ["prune", "a", "b", "--seed", "x"],
    ],
)
def test_bad_usage(invoke, arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage: " in result.stderr

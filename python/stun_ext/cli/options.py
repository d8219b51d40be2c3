# SPDX-License-Identifier: Apache-2.0
"""Flags that several commands share, and those of the recipe's settings, whose help is the recipe's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from stun_ext.recipe import Recipe

_SETTINGS = {setting.name: setting for setting in dataclasses.fields(Recipe)}


def setting(name: str) -> Any:
    """The option of one recipe setting: flag, help, choices and default are read from ``Recipe``.

    Every such option defaults to None, "not given", so that it does not override the recipe file. Values are
    checked by ``Recipe``, so that the command line, YAML and Python refuse the same values with the same
    words.
    """
    field = _SETTINGS[name]
    text, choices = field.metadata["help"], field.metadata["choices"]
    if field.default is not None and "Default:" not in text:
        text = f"{text} Default: {_shown(field.default)}."
    flag = "--" + name.replace("_", "-")
    if isinstance(field.default, bool):
        flag = f"{flag}/--no-{flag[2:]}"
    metavar = "|".join(choices) if choices else _METAVAR.get(name)
    return typer.Option(flag, help=text, metavar=metavar, show_default=False)


_METAVAR = {"similarity": "L1,L2", "scope": "NAME,...", "pattern": "N:M"}


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(_shown(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def read_settings(path: Path | None, values: Mapping[str, Any]) -> tuple[Recipe | None, dict[str, Any]]:
    """The settings of a command: the recipe file, None without one, and the flags that were given.

    They stay apart because without a file the library may choose other defaults, for example where there is
    no data. Both are checked here, together, before anything slow starts.

    Args:
        path: recipe file, YAML or JSON, or None.
        values: a command's arguments by name; those that are settings and not None are used, others ignored.

    Raises:
        ValueError: an unreadable file or an illegal value.
    """
    if path is not None and not path.is_file():
        raise ValueError(f"[recipe] no such file: {path}")
    recipe = None if path is None else Recipe.load(path)
    given = {name: values[name] for name in _SETTINGS if values.get(name) is not None}
    if "similarity" in given:
        given["similarity"] = given["similarity"].replace(",", " ").split()
    (recipe or Recipe()).replace(**given)
    return recipe, given


Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Directory of a checkpoint, or the id of one on the hub.")
]
Device = Annotated[
    str,
    typer.Option("--device", help="cpu, cuda, cuda:1, ... or auto: CUDA where there is one."),
]
Dtype = Annotated[
    str,
    typer.Option("--dtype", metavar="auto|float32|bfloat16|float16", help="auto: the checkpoint's."),
]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit on the hub.")]
LocalFilesOnly = Annotated[
    bool,
    typer.Option("--local-files-only", help="Never ask the hub: files at hand alone."),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run Python code that the checkpoint brings along."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no chatter.")]

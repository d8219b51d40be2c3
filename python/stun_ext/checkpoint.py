# SPDX-License-Identifier: Apache-2.0
"""Writing a pruned model to disk: complete or not at all, in the layout that stock Transformers loads."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedConfig, PreTrainedModel

from stun_ext.models.config_keys import is_expert_count_name, iter_configs
from stun_ext.models.schema import named_tensors

_PathLike = str | os.PathLike[str]

_TOKENIZER_FILES = (
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates",
)
_OTHER_FILES = (
    "generation_config.json",
    "*processor_config.json",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
# num_nextn_predict_layers, num_mtp_layers, num_mtp_modules, mtp_num_hidden_layers, ...
_MTP_COUNT = re.compile(r"num_(?:mtp|nextn)_\w+|mtp_num_\w+")
_MTP_TENSOR = re.compile(r"(?:^|\.)(?:mtp|nextn)")


def out_is_free(out: _PathLike, force: bool = False, source: _PathLike | None = None) -> bool:
    """Checks, before long work, that a checkpoint may be written to `out`.

    Args:
        out: The directory to write.
        force: Whether an existing checkpoint (or empty directory) may be replaced. Other directories, files
            and symbolic links are never replaced.
        source: Directory the model came from, which must not be replaced.

    Returns:
        True; everything else is an error.

    Raises:
        FileExistsError: `out` exists and may not be replaced.
        NotADirectoryError: A parent of `out` is no directory.
        PermissionError: Nothing can be created there.
        ValueError: `out` is `source`, or holds it.
    """
    path = Path(out)
    if source is not None and Path(source).exists():
        resolved = path.resolve()
        if resolved == Path(source).resolve() or resolved in Path(source).resolve().parents:
            raise ValueError(
                f"[save_pretrained] {path} is or holds the source model {source}; choose another"
            )
    if os.path.lexists(path):
        if not force:
            raise FileExistsError(
                f"[save_pretrained] {path} exists; choose another name, or force (--force) to replace it"
            )
        if path.is_symlink() or not path.is_dir():
            raise FileExistsError(f"[save_pretrained] {path} is not a directory, so it is not replaced")
        if any(path.iterdir()) and not (path / "config.json").is_file():
            raise FileExistsError(
                f"[save_pretrained] {path} holds no config.json, so it is no checkpoint and is not replaced"
            )
    ancestor = path.absolute().parent
    while not os.path.lexists(ancestor):
        ancestor = ancestor.parent
    if not ancestor.is_dir():
        raise NotADirectoryError(f"[save_pretrained] {ancestor} is not a directory")
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise PermissionError(f"[save_pretrained] {ancestor} cannot be written to")
    return True


def save_pretrained(
    model: PreTrainedModel,
    out: _PathLike,
    *,
    tokenizer: Any = None,
    files: Mapping[str, str] | None = None,
    force: bool = False,
    source: _PathLike | None = None,
) -> None:
    """Writes a model, its tokenizer and further files as a checkpoint that appears at once, complete.

    All is written to a hidden directory beside `out`, flushed to the disk, and renamed. So a kill at any
    moment leaves no `out`, the old one, or the new one; what a kill leaves behind is named ``.OUT.partial-*``
    or ``.OUT.replaced-*``.

    ``config.json`` gets what other readers need: every alias of the number of experts (Transformers writes
    one of them), and no multi-token-prediction layers when the weights have none (Transformers drops them
    when it loads a model).

    Args:
        model: The model; a ragged one gets ``per_layer_config`` and loads with `stun_ext.from_pretrained`.
        out: The directory to write.
        tokenizer: Tokenizer or processor to save along. None: its files are copied from `source`.
        files: Further text files, name -> text, such as ``README.md``.
        force: Whether to replace an existing checkpoint; see `out_is_free`.
        source: Directory (or hub id with a cached snapshot) the model came from. Generation config,
            preprocessor and licence files are copied from it where saving the model did not write them, and
            Python files where its configs refer to remote code.

    Raises:
        FileExistsError, NotADirectoryError, PermissionError, ValueError: As `out_is_free`, or a name in
        `files` that
            is not a plain file name or is one the checkpoint itself uses.
        OSError: The disk is too small, or writing failed. `out` is as it was.
    """
    path = Path(os.path.abspath(out))
    files = files or {}
    folder = _source_folder(source)
    out_is_free(path, force, folder)
    for name in files:
        if not name or Path(name).name != name or name == "config.json" or name.endswith(".safetensors"):
            raise ValueError(f"[save_pretrained] files: {name!r} is not a plain file name of its own")
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_space(model, path.parent)
    with new_directory(path, force) as partial:
        model.save_pretrained(partial, max_shard_size="5GB")
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        if folder is not None:
            carry_over(folder, partial, with_tokenizer=tokenizer is None)
        _patch_config(model.config, partial)
        for name, text in files.items():
            (partial / name).write_text(text, encoding="utf-8")
        set_modes(partial)


@contextlib.contextmanager
def new_directory(path: Path, force: bool = False) -> Iterator[Path]:
    """A hidden directory beside `path` to fill, flushed to the disk and renamed to `path` at the end.

    An error leaves `path` as it was. Call `out_is_free` before.

    Args:
        path: Absolute path of the directory to write.
        force: Whether an existing checkpoint is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _new_sibling(path, "partial")
    try:
        yield partial
        sync(partial)
        put_in_place(partial, path, force)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _source_folder(source: _PathLike | None) -> Path | None:
    """The directory of `source`: itself, or a hub id's snapshot in the cache; None when there is none."""
    if source is None or Path(source).is_dir():
        return None if source is None else Path(source)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    with contextlib.suppress(HFValidationError):  # not a hub id either
        found = try_to_load_from_cache(str(source), "config.json")
        if isinstance(found, str):
            return Path(found).parent
    return None


def _check_space(model: PreTrainedModel, folder: Path) -> None:
    storages = {
        tensor.data_ptr(): tensor.numel() * tensor.element_size() for _, tensor in named_tensors(model)
    }
    needed, free = sum(storages.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"[save_pretrained] the model takes {needed / 1e9:.1f} GB, {folder} has {free / 1e9:.1f} GB free",
        )


def _new_sibling(path: Path, kind: str) -> Path:
    """A new, hidden directory beside `path`, so that renaming one to the other stays on one file system."""
    while True:
        sibling = path.with_name(f".{path.name}.{kind}-{secrets.token_hex(4)}")
        with contextlib.suppress(FileExistsError):
            sibling.mkdir()
            return sibling


def set_modes(folder: Path) -> None:
    """Gives every file the mode of a newly written one: safetensors makes files that only their owner can read."""
    mode = stat.S_IMODE((folder / "config.json").stat().st_mode)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def put_in_place(partial: Path, path: Path, force: bool) -> None:
    """Renames the complete directory to its final name; an old one moves aside first and is removed last."""
    replaced = None
    try:
        if os.path.lexists(path):
            out_is_free(path, force)  # it may have appeared while we were writing
            replaced = _new_sibling(path, "replaced")
            os.rename(path, replaced)
        os.rename(partial, path)
    except BaseException:
        if replaced is not None and not os.path.lexists(path):
            os.rename(replaced, path)
        raise
    sync_directory(path.parent)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)


def sync(folder: Path) -> None:
    """Puts every file and directory below `folder` on the disk."""
    for directory, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(directory, name), "rb") as file:
                os.fsync(file.fileno())
        sync_directory(Path(directory))


def sync_directory(folder: Path) -> None:
    """Puts the names in a directory on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _patch_config(config: PreTrainedConfig, folder: Path) -> None:
    """Makes ``config.json`` true and readable for others; see `save_pretrained`."""
    file = folder / "config.json"
    written = json.loads(file.read_text(encoding="utf-8"))
    for location, nested in iter_configs(config):
        section = written
        for name in location:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict):
            _write_aliases(nested, section)
    without_mtp(written, _tensor_names(folder))
    auto_map = written.get("auto_map")
    if isinstance(auto_map, dict):
        written["auto_map"] = {key: _own_code(value, folder) for key, value in auto_map.items()}
    file.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _own_code(reference: Any, folder: Path) -> Any:
    """The reference "repository--module.Class" as "module.Class", when the module has come along."""
    if isinstance(reference, str) and "--" in reference:
        own = reference.rpartition("--")[2]
        if (folder / f"{own.partition('.')[0]}.py").exists():
            return own
    return reference


def _write_aliases(config: PreTrainedConfig, section: dict[str, Any]) -> None:
    """Adds the other names of the expert count: older and other readers of Qwen3-MoE want `num_experts`."""
    for alias, name in config.attribute_map.items():
        if name in section and is_expert_count_name(name) and is_expert_count_name(alias):
            section[alias] = section[name]


def _sections(written: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield written
    for value in written.values():
        if isinstance(value, dict):
            yield from _sections(value)


def without_mtp(written: dict[str, Any], names: Iterable[str]) -> None:
    """Sets the counts of multi-token-prediction layers in a ``config.json`` to 0 if no tensor belongs to one.

    Args:
        written: The config; changed in place.
        names: Names of the checkpoint's tensors.
    """
    counts = [
        (section, name)
        for section in _sections(written)
        for name, value in section.items()
        if _MTP_COUNT.fullmatch(name) and isinstance(value, int) and not isinstance(value, bool)
    ]
    if counts and not mtp_tensors(written, names):
        for section, name in counts:
            section[name] = 0


def mtp_tensors(written: dict[str, Any], names: Iterable[str]) -> list[str]:
    """The tensors that belong to multi-token prediction, by name or as layers after the last.

    Args:
        written: A ``config.json``.
        names: Names of the checkpoint's tensors.
    """
    layers = [
        section["num_hidden_layers"] for section in _sections(written) if "num_hidden_layers" in section
    ]
    last = layers[-1] if layers and isinstance(layers[-1], int) else float("inf")  # of the text model
    found = []
    for name in names:
        layer = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
        if _MTP_TENSOR.search(name) or (layer and int(layer[1]) >= last):
            found.append(name)
    return found


def _tensor_names(folder: Path) -> Iterator[str]:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            yield from tensors.keys()


def carry_over(source: Path, folder: Path, *, with_tokenizer: bool) -> None:
    """Copies what belongs to the source and is not there yet; contents, not links into a hub cache."""
    patterns = [*_OTHER_FILES, *(_TOKENIZER_FILES if with_tokenizer else ())]
    if any(_mentions_remote_code(file) for file in source.glob("*.json")):
        patterns.append("*.py")
    for item in sorted(source.iterdir()):
        target = folder / item.name
        if target.exists() or not any(fnmatch(item.name, pattern) for pattern in patterns):
            continue
        if item.is_dir():
            shutil.copytree(item, target)
        elif item.suffix not in (".safetensors", ".bin", ".gguf"):
            shutil.copyfile(item, target)


def _mentions_remote_code(file: Path) -> bool:
    if not fnmatch(file.name, "*config.json"):
        return False
    try:
        return "auto_map" in json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False

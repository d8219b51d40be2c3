# SPDX-License-Identifier: Apache-2.0
"""Damaged and hostile files of packed experts are refused with the tensor's name, before any kernel sees them."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
from model_families import make_model, zero_weights

import stun_ext
from stun_ext.packed_file import PackedFile

NAME = "model.layers.1.mlp.experts.down_proj"


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    model = make_model("qwen3_moe")
    zero_weights(model, 0.5)
    model.bfloat16().save_pretrained(folder / "dense")
    stun_ext.pack_checkpoint(folder / "dense", folder / "packed")
    return folder / "packed"


class Editor:
    """A copy of a packed directory whose file's header and data can be changed."""

    def __init__(self, source, folder):
        self.folder = folder / "packed"
        shutil.copytree(source, self.folder)
        self.path = self.folder / "model.stun.safetensors"
        raw = self.path.read_bytes()
        self.length = int.from_bytes(raw[:8], "little")
        self.header = json.loads(raw[8 : 8 + self.length])
        self.data = bytearray(raw[8 + self.length :])
        self.experts = json.loads(self.header["__metadata__"]["experts"])
        self.entry = next(entry for entry in self.experts if entry["name"] == NAME)

    def write(self):
        if isinstance(self.header.get("__metadata__"), dict) and self.experts is not None:
            self.header["__metadata__"]["experts"] = json.dumps(self.experts)
        text = json.dumps(self.header).encode()
        text = text.ljust(-(-(8 + len(text)) // 64) * 64 - 8)
        self.path.write_bytes(len(text).to_bytes(8, "little") + text + self.data)

    def array(self, name, dtype):
        begin, end = self.header[name]["data_offsets"]
        return np.frombuffer(self.data, dtype, count=(end - begin) // np.dtype(dtype).itemsize, offset=begin)


@pytest.fixture
def editor(packed, tmp_path):
    return Editor(packed, tmp_path)


def refused(editor, message):
    """By the loader and by unpack, neither of which leaves anything behind."""
    editor.write()
    with pytest.raises(ValueError, match=message):
        stun_ext.from_pretrained(editor.folder)
    with pytest.raises(ValueError, match=message):
        stun_ext.unpack_checkpoint(editor.folder, editor.folder.parent / "out")
    assert [path.name for path in editor.folder.parent.iterdir()] == ["packed"]


def test_the_copy_itself_is_good(editor):
    editor.write()
    assert stun_ext.from_pretrained(editor.folder).config._experts_implementation == "stun_ext"


def test_one_more_bit(editor):
    masks = editor.array(f"{NAME}.2.masks", np.uint32)
    absent = next(bit for bit in range(24) if not masks[5] >> bit & 1)
    masks[5] |= np.uint32(1 << absent)
    refused(editor, rf"{NAME}\.2 is damaged")


def test_a_bit_outside_of_the_matrix(editor):
    masks = editor.array(f"{NAME}.2.masks", np.uint32)  # 24 columns
    present = next(bit for bit in range(24) if masks[5] >> bit & 1)
    masks[5] ^= np.uint32(1 << present | 1 << 30)
    refused(editor, rf"{NAME}\.2 is damaged")


def test_values_that_are_too_short(editor):
    entry = editor.header[f"{NAME}.0.values"]
    entry["data_offsets"][1] -= 64
    entry["shape"] = [entry["shape"][0] - 32]
    refused(editor, rf"{NAME}\.0 is damaged")


def test_a_truncated_file(editor):
    editor.data = editor.data[: editor.header[f"{NAME}.3.values"]["data_offsets"][1] - 1]
    editor.write()
    with pytest.raises(ValueError, match=rf"{NAME}\.3\.values ends at byte"):
        stun_ext.from_pretrained(editor.folder)


def test_offsets_past_the_end(editor):
    entry = editor.header[f"{NAME}.7.values"]
    entry["data_offsets"] = [offset + (1 << 40) for offset in entry["data_offsets"]]
    refused(editor, rf"{NAME}\.7\.values ends at byte")


@pytest.mark.parametrize("part", ["values", "masks"])
def test_a_missing_tensor(editor, part):
    del editor.header[f"{NAME}.1.{part}"]
    refused(editor, rf"tensors of {NAME}\.1 are missing")


@pytest.mark.parametrize("part", ["values", "masks"])
def test_a_tensor_of_another_dtype(editor, part):
    editor.header[f"{NAME}.1.{part}"]["dtype"] = "F16"
    refused(editor, rf"tensors of {NAME}\.1 are missing")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shape", [36, 24]),
        ("shape", [32, -24]),
        ("shape", [1 << 40, 1 << 40]),
        ("shape", [32]),
        ("shape", "32"),
        ("num_experts", 9),
        ("num_experts", 1 << 30),
        ("num_experts", True),
        ("dtype", "float64"),
        ("dtype", ["bfloat16"]),
        ("fused", 3),
        ("is_transposed", True),
        ("per_expert", [["x"]]),
        ("per_expert", "x"),
    ],
)
def test_an_entry_that_does_not_fit(editor, field, value):
    editor.entry[field] = value
    refused(editor, rf"{NAME}")


@pytest.mark.parametrize("experts", ["[", "{}", "[]", "[3]", "[[]]", "[" * 100_000, '[{"name": 3}]'])
def test_a_list_that_is_none(editor, experts):
    editor.experts = None
    editor.header["__metadata__"]["experts"] = experts
    refused(editor, "the list of experts is damaged")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", "pt", "not a file of packed experts"),
        ("format_version", "2", "format_version must be 1, got '2'"),
    ],
)
def test_another_format(editor, field, value, message):
    editor.header["__metadata__"][field] = value
    refused(editor, message)


def test_a_parameter_listed_twice(editor):
    editor.experts.append(editor.entry)
    refused(editor, "listed twice")


def test_a_layer_that_is_missing(editor):
    editor.experts = [entry for entry in editor.experts if not entry["name"].startswith("model.layers.1.")]
    editor.write()
    with pytest.raises(ValueError, match=r"lacks the experts of model\.layers\.1\.mlp\.experts"):
        stun_ext.from_pretrained(editor.folder)
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.experts\.0\.down_proj\.weight is in none"):
        stun_ext.unpack_checkpoint(editor.folder, editor.folder.parent / "out")


def test_one_projection_alone(editor):
    editor.experts = [entry for entry in editor.experts if entry["name"] != NAME]
    editor.write()
    with pytest.raises(ValueError, match="must have an up and a down projection"):
        stun_ext.from_pretrained(editor.folder)


def test_a_parameter_of_no_module(editor):
    for entry in editor.experts:
        entry["name"] = entry["name"].replace("layers.1", "layers.9")
    editor.header = {name.replace("layers.1", "layers.9"): entry for name, entry in editor.header.items()}
    editor.write()
    with pytest.raises(ValueError, match=r"layers\.9\.mlp\.experts\.gate_up_proj must be"):
        stun_ext.from_pretrained(editor.folder)


@pytest.mark.parametrize(
    "name", ["../evil.safetensors", "/tmp/evil.safetensors", "config.json", ".safetensors"]
)
def test_unpack_writes_nowhere_else(editor, name):
    editor.header[f"source.{name}"] = editor.header.pop("source.model.safetensors")
    editor.write()
    with pytest.raises(ValueError, match="no name of a checkpoint's file"):
        stun_ext.unpack_checkpoint(editor.folder, editor.folder.parent / "out")
    assert not list(editor.folder.parent.rglob("evil*"))


def test_a_source_header_that_promises_more(editor):
    begin, end = editor.header["source.model.safetensors"]["data_offsets"]
    text = json.loads(bytes(editor.data[begin:end]))
    name = "model.layers.1.mlp.experts.0.down_proj.weight"
    text[name]["data_offsets"][1] += 2
    content = json.dumps(text).encode()
    editor.header["source.model.safetensors"] = {
        "dtype": "U8", "shape": [len(content)], "data_offsets": [len(editor.data), len(editor.data) + len(content)],
    }  # fmt: skip
    editor.data += content
    editor.write()
    with pytest.raises(ValueError, match=f"{name} takes"):
        stun_ext.unpack_checkpoint(editor.folder, editor.folder.parent / "out")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_matrices_lie_where_the_file_is_mapped(packed):
    file = PackedFile(packed / "model.stun.safetensors")
    entry = next(entry for entry in file.entries if entry.name == NAME)
    matrix = file.matrix(entry, 0)
    assert matrix.values.ctypes.data % 64 == 0 and matrix.masks.ctypes.data % 64 == 0
    keep = [file.matrix(entry, expert) for entry in file.entries for expert in range(8)]
    assert len(keep) > 40
    with open("/proc/self/maps") as maps:
        where = matrix.values.ctypes.data
        lines = [line for line in maps if line.rstrip().endswith("model.stun.safetensors")]
    spans = [tuple(int(end, 16) for end in line.split()[0].split("-")) for line in lines]
    assert any(begin <= where < end for begin, end in spans)
    assert len(spans) <= 4  # the file is mapped as a whole; others may hold it, too

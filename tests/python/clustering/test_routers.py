# SPDX-License-Identifier: Apache-2.0
"""Rows are read where they lie, and what a file says of itself is not believed."""

from __future__ import annotations

import struct
import subprocess
import sys
import types
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors_writer import entry, write

from stun_ext.routers import is_file, model_routers, open_router
from stun_ext.safetensors_file import read_header

ROWS = np.random.default_rng(0).standard_normal((6, 5))
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_of_a_safetensors_file(dtype: str, tmp_path: Path) -> None:
    expected = torch.from_numpy(ROWS).to(DTYPES[dtype])
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"other": torch.zeros(3, dtype=torch.int8), "a.b:c": expected}, file)
    router = open_router(f"{file}:a.b:c")
    assert router.name == f"{file}:a.b:c"
    assert isinstance(router.rows, np.memmap) and not router.rows.flags.writeable
    assert router.dtype == ("bfloat16" if dtype == "BF16" else None)
    bits = expected.view(torch.uint16) if dtype == "BF16" else expected
    assert np.array_equal(router.rows, bits.numpy())


@pytest.mark.parametrize("dtype", ["<f8", "<f4", "<f2", ml_dtypes.bfloat16])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_npy_file(dtype: object, order: str, tmp_path: Path) -> None:
    expected = np.asarray(ROWS.astype(dtype), order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "rows.npy", expected)
    router = open_router(tmp_path / "rows.npy")
    assert isinstance(router.rows, np.memmap) and not router.rows.flags.writeable
    assert router.dtype == ("bfloat16" if dtype is ml_dtypes.bfloat16 else None)
    assert router.rows.tobytes() == expected.tobytes()


def test_the_only_matrix_needs_no_name(tmp_path: Path) -> None:
    file = tmp_path / "router.safetensors"
    safetensors.torch.save_file({"weight": torch.ones(3, 2), "bias": torch.ones(3)}, file)
    assert open_router(file).rows.shape == (3, 2)
    safetensors.torch.save_file({"a": torch.ones(3, 2), "b": torch.ones(3, 2)}, file)
    with pytest.raises(ValueError, match=r"router\.safetensors holds 2 matrices; name the tensor itself"):
        open_router(file)


def test_misaligned_data_is_copied(tmp_path: Path) -> None:
    """Writers that do not pad their header put the data at any address."""
    data = ROWS.astype("<f4").tobytes()
    starts = set()
    for pad in range(4):
        file = write(
            tmp_path / f"{pad}.safetensors", {"w": entry("F32", [6, 5], 0, len(data))}, data, pad=pad
        )
        router = open_router(f"{file}:w")
        assert router.rows.flags.aligned
        assert np.array_equal(router.rows, ROWS.astype("<f4"))
        starts.add(read_header(file).data_start % 4)
    assert starts == {0, 1, 2, 3}


def test_nothing_is_loaded(tmp_path: Path) -> None:
    """Opening and reading the last row of 8 GB in a process that may have 2 GB; the file has holes for the rest."""
    shape, size = [1 << 20, 2048], (1 << 20) * 2048 * 4
    file = write(tmp_path / "huge.safetensors", {"w": entry("F32", shape, 0, size)}, b"")
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size + size - 4)
        stream.seek(0, 2)
        stream.write(struct.pack("<f", 7.0))
    program = (
        "import resource, sys\nfrom stun_ext.routers import open_router\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))\n"
        "rows = open_router(sys.argv[1]).rows\nprint(rows.shape, rows[-1, -1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, f"{file}:w"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "(1048576, 2048) 7.0\n"


@pytest.mark.parametrize(
    ("tensor", "error"),
    [
        (entry("F32", [2, 2], 0, 12), r"w, F32 \[2, 2\], takes 16 bytes, but the header gives it 12"),
        (entry("F32", [2, 2], 0, 20), "takes 16 bytes, but the header gives it 20"),
        (entry("F32", [2, 3], 0, 24), "w ends at byte .*, but the file has .*: it is truncated"),
        (entry("F32", [2, 2], 1 << 60, (1 << 60) + 16), "w ends at byte .*, but the file has"),
        (entry("F32", [1 << 40, 1 << 40], 0, 16), "takes 4,835,703,278,458,516,698,824,704 bytes"),
        (entry("F32", [2, 2], 16, 0), "the header's entry of w is damaged"),
        (entry("F32", [2, -2], 0, 16), "the header's entry of w is damaged"),
        (entry("F32", [2, 2.0], 0, 16), "the header's entry of w is damaged"),  # type: ignore[list-item]
        ({"dtype": "F32", "shape": [2, 2]}, "the header's entry of w is damaged"),
        ({"dtype": "F32", "shape": 4, "data_offsets": [0, 16]}, "the header's entry of w is damaged"),
        ({"dtype": 3, "shape": [2, 2], "data_offsets": [0, 16]}, "the header's entry of w is damaged"),
        ({"dtype": "F32", "shape": [2, 2], "data_offsets": [0]}, "the header's entry of w is damaged"),
        ([], "the header's entry of w is damaged"),
        (entry("F8_E4M3", [4, 4], 0, 16), "w must be one of F64, F32, F16, BF16, got F8_E4M3"),
        (entry("I32", [2, 2], 0, 16), "w must be one of F64, F32, F16, BF16, got I32"),
        (entry("F32", [4], 0, 16), r"must be a matrix \[n, d\], got shape \[4\]"),
    ],
)
def test_a_damaged_file_is_refused(tensor: object, error: str, tmp_path: Path) -> None:
    file = write(tmp_path / "bad.safetensors", {"w": tensor}, bytes(16))
    with pytest.raises(ValueError, match=error) as caught:
        open_router(f"{file}:w")
    assert "bad.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"\x07", b"\xff" * 8, struct.pack("<Q", 4) + b"nope", struct.pack("<Q", 2) + b"[]",
                struct.pack("<Q", 99) + b"{}"]
)  # fmt: skip
def test_a_file_that_is_no_safetensors_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is not a safetensors file"):
        read_header(path)


def test_a_tensor_that_is_not_there(tmp_path: Path) -> None:
    file = write(
        tmp_path / "m.safetensors", {f"t{i:02}": entry("F32", [1, 1], 0, 4) for i in range(10)}, bytes(4)
    )
    with pytest.raises(
        ValueError, match=r"m\.safetensors has no tensor 'x'; it holds 10: t00, t01, .*, t07, \.\.\.$"
    ):
        open_router(f"{file}:x")


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04", b"\x93NUMPY\x01\x00\x03\x00abc"]
)
def test_a_damaged_npy_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "rows.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"rows\.npy cannot be mapped as a \.npy file"):
        open_router(tmp_path / "rows.npy")


def test_a_truncated_npy_file_and_one_of_objects(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", ROWS)
    whole = (tmp_path / "rows.npy").read_bytes()
    (tmp_path / "rows.npy").write_bytes(whole[:-8])
    with pytest.raises(ValueError, match=r"rows\.npy cannot be mapped"):
        open_router(tmp_path / "rows.npy")
    np.save(tmp_path / "rows.npy", np.array([[None]]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"rows\.npy cannot be mapped"):
        open_router(tmp_path / "rows.npy")


def test_other_paths(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file: .*none\.npy"):
        open_router(tmp_path / "none.npy")
    with pytest.raises(FileNotFoundError, match=r"no such file: .*none\.safetensors"):
        open_router(f"{tmp_path}/none.safetensors:w")
    with pytest.raises(ValueError, match=r"a \.npy or \.safetensors file is legal, got 'rows\.csv'"):
        open_router("rows.csv")
    (tmp_path / "rows.csv").write_text("1,2")
    (tmp_path / "odd.npy").mkdir()
    assert is_file("a.npy") and is_file("a.safetensors:w") and is_file(str(tmp_path / "rows.csv"))
    assert not is_file(str(tmp_path / "odd.npy")) and not is_file("org/model")


# Models -----------------------------------------------------------------------------------------------------


def test_models_that_have_no_routers(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no safetensors files; name the tensor itself"):
        model_routers(tmp_path)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no routed experts; name the tensor itself"):
        model_routers(tmp_path)
    with pytest.raises(ValueError, match="the cache has no complete checkpoint of nobody/nothing"):
        model_routers("nobody/nothing", local_files_only=True)


def test_of_a_model_on_the_hub_its_routers_alone_are_fetched(
    monkeypatch: pytest.MonkeyPatch, demo_model: Path
) -> None:
    """The hub's client is replaced by one that reads a directory and keeps book."""
    import huggingface_hub
    from transformers import AutoConfig

    name, file = "org/model", demo_model / "model.safetensors"
    fetched = []

    class Files:
        def cat_file(self, path: str, start: int, end: int) -> bytes:
            assert path == f"{name}@a%2Fbranch/model.safetensors"
            fetched.append(end - start)
            return file.read_bytes()[start:end]

    def metadata(model: str, *, revision: str | None) -> object:
        assert (model, revision) == (name, "a/branch")
        tensors = {
            key: types.SimpleNamespace(
                dtype=tensor.dtype, shape=list(tensor.shape), data_offsets=(tensor.begin, tensor.end)
            )
            for key, tensor in read_header(file).tensors.items()
        }
        return types.SimpleNamespace(files_metadata={file.name: types.SimpleNamespace(tensors=tensors)})

    config = AutoConfig.from_pretrained(demo_model)
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", Files)
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", metadata)
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *_, **__: config)
    found = model_routers(name, revision="a/branch")
    local = model_routers(demo_model)
    assert [router.name for router in found] == [router.name for router in local]
    for one, other in zip(found, local, strict=True):
        assert one.dtype == other.dtype == "bfloat16" and np.array_equal(one.rows, other.rows)
    assert sum(fetched) == sum(8 + router.rows.nbytes for router in local)

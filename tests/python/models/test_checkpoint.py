# SPDX-License-Identifier: Apache-2.0
"""Checkpoints on disk: complete or absent, true config, nothing of the user's lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from model_families import logits, make_model, reload
from safetensors.torch import load_file, save_file

from stun_ext import checkpoint
from stun_ext.checkpoint import out_is_free, save_pretrained
from stun_ext.models import analyze, plan_slices

PACKAGE = Path(checkpoint.__file__).resolve().parents[1]


def children(folder):
    return sorted(path.name for path in folder.iterdir())


def sliced(family="qwen3_moe", count=5, **changes):
    model = make_model(family, **changes)
    moe = analyze(model)
    plan_slices(moe, [count] * len(moe.layers)).apply([list(range(count))] * len(moe.layers))
    return model


def run_python(code, *arguments, path=None, **options):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    if path:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


# --- what is written ---


def test_a_process_that_does_not_know_this_package_loads_it(tmp_path):
    model = sliced("deepseek_v3", 4, n_group=1)
    save_pretrained(model, tmp_path / "out")
    torch.save(logits(model), tmp_path / "logits.pt")
    code = """
        import sys, torch
        from transformers import AutoModelForCausalLM
        out, expected = sys.argv[1:]
        options = dict(attn_implementation="eager", experts_implementation="eager", dtype=torch.float32)
        model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True, **options)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
        tokens = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            logits = model(input_ids=tokens, use_cache=False).logits
        torch.testing.assert_close(logits, torch.load(expected), rtol=1e-5, atol=1e-6)
        assert not any(name.startswith("stun_ext") for name in sys.modules)
        print("num_experts", model.config.n_routed_experts)
    """
    process = run_python(code, tmp_path / "out", tmp_path / "logits.pt")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.strip() == "num_experts 4"


def test_only_the_checkpoint_is_left_behind(tmp_path):
    model = sliced()
    model.config.architectures = None
    save_pretrained(
        model, tmp_path / "a" / "b" / "out", files={"README.md": "# ü\n", "stun_report.json": "{}"}
    )
    assert children(tmp_path / "a" / "b") == ["out"]
    out = tmp_path / "a" / "b" / "out"
    assert children(out) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "stun_report.json",
    ]
    assert (out / "README.md").read_text(encoding="utf-8") == "# ü\n"
    assert out.stat().st_mode & 0o777 == 0o777 & ~_umask()
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o666 & ~_umask()}
    assert json.loads((out / "config.json").read_text())["architectures"] == ["Qwen3MoeForCausalLM"]


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_missing_prediction_layers_are_said_to_be_missing(tmp_path):
    model = sliced("deepseek_v3", 4, n_group=1)
    key = "num_nextn_predict_layers"
    assert model.config.to_dict().get(key, model.config.to_dict().get("num_mtp_layers")) == 1
    save_pretrained(model, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [value for name, value in written.items() if "nextn" in name or "mtp_layers" in name] == [0]
    assert reload(tmp_path / "out").config.num_hidden_layers == 3


def test_prediction_layers_that_are_there_stay_counted(tmp_path, monkeypatch):
    model = sliced("deepseek_v3", 4, n_group=1)
    original = type(model).save_pretrained

    def with_extra_layer(self, folder, **kwargs):
        original(self, folder, **kwargs)
        file = Path(folder) / "model.safetensors"
        tensors = load_file(file)
        tensors["model.layers.3.eh_proj.weight"] = torch.ones(2, 2)
        save_file(tensors, file, metadata={"format": "pt"})

    monkeypatch.setattr(type(model), "save_pretrained", with_extra_layer)
    save_pretrained(model, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [value for name, value in written.items() if "nextn" in name or "mtp_layers" in name] == [1]


def test_tokenizer_is_saved_or_carried_over(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    )
    tokenizer.chat_template = "{{ messages }}"
    model, source = make_model("mixtral"), tmp_path / "source"
    model.save_pretrained(source)
    tokenizer.save_pretrained(source)
    for name in ("LICENSE", "tokenizer.model", "notes.txt", "train.py", "USE_POLICY.md"):
        (source / name).write_text(name)
    (source / "generation_config.json").write_text(json.dumps({"temperature": 0.5, "do_sample": True}))

    save_pretrained(model, tmp_path / "carried", source=source)
    assert set(children(tmp_path / "carried")) >= {
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE", "tokenizer.model",
        "USE_POLICY.md",
    }  # fmt: skip
    assert not {"notes.txt", "train.py"} & set(children(tmp_path / "carried"))
    assert (tmp_path / "carried" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path / "carried").chat_template == "{{ messages }}"

    save_pretrained(model, tmp_path / "saved", source=source, tokenizer=tokenizer)
    assert "tokenizer.json" in children(tmp_path / "saved")
    assert "tokenizer.model" not in children(tmp_path / "saved")
    assert "LICENSE" in children(tmp_path / "saved")

    save_pretrained(model, tmp_path / "alone")
    assert "tokenizer.json" not in children(tmp_path / "alone")


def test_remote_code_travels_along(tmp_path):
    model, source = make_model("mixtral"), tmp_path / "source"
    model.config.auto_map = {
        "AutoModelForCausalLM": "someone/model--modeling_own.Own",
        "AutoConfig": "other--x.Y",
    }
    model.save_pretrained(source)
    (source / "modeling_own.py").write_text("class Own: ...\n")
    save_pretrained(model, tmp_path / "out", source=source)
    assert (tmp_path / "out" / "modeling_own.py").exists()
    auto_map = json.loads((tmp_path / "out" / "config.json").read_text())["auto_map"]
    assert auto_map == {"AutoModelForCausalLM": "modeling_own.Own", "AutoConfig": "other--x.Y"}


def test_links_of_a_hub_cache_become_files(tmp_path):
    model, source = make_model("mixtral"), tmp_path / "source"
    model.save_pretrained(source)
    (tmp_path / "blob").write_text("{}")
    (source / "tokenizer.json").symlink_to(tmp_path / "blob")
    save_pretrained(model, tmp_path / "out", source=source)
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()


# --- what is refused ---


def test_existing_out_is_refused_and_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("old")
    for call in (lambda: out_is_free(tmp_path / "out"), lambda: save_pretrained(sliced(), tmp_path / "out")):
        with pytest.raises(FileExistsError, match="exists; choose another name, or force"):
            call()
    assert (tmp_path / "out" / "config.json").read_text() == "old"
    assert children(tmp_path) == ["out"]


def test_force_replaces_a_checkpoint(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("old")
    (tmp_path / "out" / "stale.txt").write_text("old")
    assert out_is_free(tmp_path / "out", force=True)
    save_pretrained(sliced(), tmp_path / "out", force=True)
    assert children(tmp_path) == ["out"]
    assert "stale.txt" not in children(tmp_path / "out")
    assert reload(tmp_path / "out").config.num_experts == 5


def test_force_replaces_no_other_directory_file_or_link(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "home")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("home", "no config.json"),
        ("file", "not a directory"),
        ("link", "not a directory"),
    ):
        with pytest.raises(FileExistsError, match=message):
            out_is_free(tmp_path / name, force=True)
    assert out_is_free(tmp_path / "empty", force=True)
    assert out_is_free(tmp_path / "new" / "deep")
    with pytest.raises(NotADirectoryError, match="file is not a directory"):
        out_is_free(tmp_path / "file" / "out")


def test_source_is_never_replaced(tmp_path):
    source = tmp_path / "models" / "source"
    make_model("mixtral").save_pretrained(source)
    (tmp_path / "models" / "config.json").write_text("{}")
    for out in (source, tmp_path / "models" / ".." / "models" / "source", tmp_path / "models"):
        with pytest.raises(ValueError, match="is or holds the source"):
            out_is_free(out, force=True, source=source)
        with pytest.raises(ValueError, match="is or holds the source"):
            save_pretrained(sliced(), out, force=True, source=source)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "config.json", "model.safetensors"])
def test_names_of_further_files(name, tmp_path):
    with pytest.raises(ValueError, match="is not a plain file name of its own"):
        save_pretrained(sliced(), tmp_path / "out", files={name: "x"})
    assert children(tmp_path) == []


def test_full_disk_is_noticed_before_writing(tmp_path, monkeypatch):
    usage = checkpoint.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match="GB free"):
        save_pretrained(sliced(), tmp_path / "out")
    assert children(tmp_path) == []


# --- interruptions ---


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("failing", ["_patch_config", "sync", "carry_over"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_failure_leaves_what_was_there(failing, existing, error, tmp_path, monkeypatch):
    if existing:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "config.json").write_text("old")
    (tmp_path / "source").mkdir()

    def fail(*arguments, **keywords):
        raise error

    monkeypatch.setattr(checkpoint, failing, fail)
    with pytest.raises(type(error)):
        save_pretrained(sliced(), tmp_path / "out", force=existing, source=tmp_path / "source")
    assert children(tmp_path) == (["out", "source"] if existing else ["source"])
    if existing:
        assert (tmp_path / "out" / "config.json").read_text() == "old"


def test_failing_rename_puts_the_old_one_back(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("old")
    rename, calls = os.rename, []

    def fail_second(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(checkpoint.os, "rename", fail_second)
    with pytest.raises(OSError, match="no"):
        save_pretrained(sliced(), tmp_path / "out", force=True)
    assert children(tmp_path) == ["out"]
    assert (tmp_path / "out" / "config.json").read_text() == "old"


@pytest.mark.parametrize("existing", [False, True])
def test_kill_at_any_moment_leaves_no_half_checkpoint(existing, tmp_path):
    """kill -9 at many moments of the save: OUT is absent, old or complete, and a later save succeeds.

    A process of its own builds the model and forks once per kill, so that each save starts at once.
    """
    code = """
        import os, signal, sys, time
        from pathlib import Path
        helpers, folder, existing = sys.argv[1:]
        sys.path.insert(0, helpers)
        from model_families import make_model
        from stun_ext.checkpoint import save_pretrained
        model = make_model("mixtral", hidden_size=128, intermediate_size=256)

        def fork(out):
            child = os.fork()
            if not child:
                save_pretrained(model, out, force=True, files={"README.md": "new"})
                os._exit(0)
            return child

        def content(out):
            return {path.name: path.read_bytes() for path in out.iterdir()} if out.exists() else None

        reference, durations = Path(folder) / "reference", []
        for _ in range(3):
            begin = time.perf_counter()
            assert os.waitpid(fork(reference), 0)[1] == 0
            durations.append(time.perf_counter() - begin)
        expected, moments = content(reference), 16
        for moment in range(moments):
            out = Path(folder) / f"run{moment}" / "out"
            out.parent.mkdir()
            if existing == "True":
                out.mkdir()
                (out / "config.json").write_text("old")
            child = fork(out)
            time.sleep(1.2 * max(durations) * moment / moments)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            found = content(out)
            outcomes = [("absent", None), ("old", {"config.json": b"old"}), ("new", expected)]
            print([name for name, state in outcomes if state == found] or "HALF", flush=True)
        assert os.waitpid(fork(out), 0)[1] == 0
        assert content(out) == expected
    """
    process = run_python(code, Path(__file__).parent, tmp_path, existing, path=[PACKAGE])
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    outcomes = [line.strip("[']") for line in output.splitlines()]
    assert len(outcomes) == 16
    assert set(outcomes) <= {"absent", "old", "new"}
    # Kills before the end were among them, and unless `out` is between its two renames the old one is there.
    assert outcomes[0] == ("old" if existing else "absent")
    assert outcomes.count("absent") <= 2 or not existing

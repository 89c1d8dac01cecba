"""Damaged, hostile and unwritable checkpoints: refused or survived, never trusted."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import sys
import time

import pytest
import safetensors.torch
import torch

from fastssl.engine import checkpoint
from fastssl.engine.checkpoint import CheckpointError, Snapshot
from fastssl.engine.console import Console

FILES = ["model.safetensors", "optim.safetensors", "state.json", "MANIFEST.json"]


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    """A finished toy run with checkpoints at steps 21 and 24."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("finished") / "run"
    toy.train(out)
    return out


@pytest.fixture
def newest(run, tmp_path):
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    return tmp_path / "checkpoints" / "step-00000024"


def sign(folder) -> None:
    """Make the manifest agree with hostile content, as an attacker would."""
    files = {name: checkpoint._measure(folder / name) for name in FILES[:3]}
    content = checkpoint._canonical({"files": files, "format": 1})
    (folder / "MANIFEST.json").write_bytes(content)


def test_an_intact_checkpoint_is_read(newest):
    assert checkpoint.read(newest).state["step"] == 24


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_refused(newest, name):
    content = (newest / name).read_bytes()
    draw = random.Random(0)
    lengths = {0, 1, len(content) - 1, *(draw.randrange(len(content)) for _ in range(50))}
    for length in lengths:
        (newest / name).write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            checkpoint.read(newest)


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_refused(newest, name):
    content = (newest / name).read_bytes()
    draw = random.Random(0)
    for bit in (draw.randrange(8 * len(content)) for _ in range(100)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        (newest / name).write_bytes(damaged)
        with pytest.raises(CheckpointError):
            checkpoint.verify(newest)


def test_the_flipped_bits_would_pass_without_the_manifest(newest):
    """The alarm's own test: safetensors alone loads a damaged tensor without complaint."""
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-9] ^= 1
    assert safetensors.torch.load(bytes(content))


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(newest, name):
    (newest / name).unlink()
    with pytest.raises(CheckpointError):
        checkpoint.read(newest)


def test_an_additional_file_is_refused(newest):
    (newest / "sitecustomize.py").write_text("")
    with pytest.raises(CheckpointError, match="sitecustomize"):
        checkpoint.read(newest)


@pytest.mark.parametrize("name", FILES)
def test_a_symbolic_link_is_refused(newest, name, tmp_path):
    shutil.move(newest / name, tmp_path / name)
    (newest / name).symlink_to(tmp_path / name)
    with pytest.raises(CheckpointError):
        checkpoint.read(newest)


def test_a_linked_checkpoint_folder_is_refused(newest, tmp_path):
    shutil.move(newest, tmp_path / "elsewhere")
    newest.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="not a folder"):
        checkpoint.read(newest)


def test_a_fifo_in_place_of_a_file_is_refused_without_waiting(newest):
    (newest / "state.json").unlink()
    os.mkfifo(newest / "state.json")
    with pytest.raises(CheckpointError):
        checkpoint.read(newest)


ENTRY = {"bytes": 0, "sha256": "0" * 64}
HOSTILE_MANIFESTS = {
    "not json": b"\x80\x04cos\nsystem\n",
    "empty": b"",
    "list": b"[]",
    "number": b"7",
    "null files": b'{"files":null,"format":1}',
    "path traversal": json.dumps({"files": {"../../etc/passwd": ENTRY}, "format": 1}).encode(),
    "absolute path": json.dumps({"files": {"/etc/passwd": ENTRY}, "format": 1}).encode(),
    "deep nesting": b"[" * 60_000,
    "huge": b" " * (1 << 17),
    "huge number": b'{"files":' + b"9" * 50_000 + b',"format":1}',
    "other format": json.dumps({"files": dict.fromkeys(FILES[:3], ENTRY), "format": 2}).encode(),
    "nan": b'{"files":NaN,"format":1}',
}


@pytest.mark.parametrize("content", HOSTILE_MANIFESTS.values(), ids=HOSTILE_MANIFESTS.keys())
def test_a_hostile_manifest_is_refused(newest, content):
    (newest / "MANIFEST.json").write_bytes(content)
    with pytest.raises(CheckpointError):
        checkpoint.read(newest)


def header(entries: dict) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def tensor(begin: int, end: int, shape: list, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HOSTILE_TENSORS = {
    "pickle": b"\x80\x04\x95cposix\nsystem\nX\x04\x00\x00\x00true\x85R.",
    "huge header": (1 << 62).to_bytes(8, "little") + b"{}",
    "overlap": header({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}) + bytes(12),
    "beyond the end": header({"a": tensor(0, 4096, [1024])}) + bytes(8),
    "negative": header({"a": tensor(-8, 0, [2])}) + bytes(8),
    "wrong size": header({"a": tensor(0, 8, [1 << 40])}) + bytes(8),
    "overflow": header({"a": tensor(0, 8, [1 << 33, 1 << 33])}) + bytes(8),
    "unknown dtype": header({"a": tensor(0, 8, [1], "PICKLE")}) + bytes(8),
    "hole": header({"a": tensor(4, 8, [1])}) + bytes(8),
    "not json": (4).to_bytes(8, "little") + b"{{{{",
}


@pytest.mark.parametrize("name", FILES[:2])
@pytest.mark.parametrize("content", HOSTILE_TENSORS.values(), ids=HOSTILE_TENSORS.keys())
def test_hostile_tensors_with_a_valid_manifest_are_refused(newest, name, content):
    (newest / name).write_bytes(content)
    sign(newest)
    with pytest.raises(CheckpointError):
        checkpoint.read(newest)


HOSTILE_STATES = {
    "list": b"[]",
    "json bomb": b"[" * 100_000 + b"]" * 100_000,
    "too large": b'"' + b"a" * (17 << 20) + b'"',
    "another step": b'{"step":25}',
    "nothing": b"{}",
    "not utf-8": b'{"step":24,"a":"\xff\xfe"}',
}


@pytest.mark.parametrize("content", HOSTILE_STATES.values(), ids=HOSTILE_STATES.keys())
def test_a_hostile_state_with_a_valid_manifest_is_refused(newest, content):
    (newest / "state.json").write_bytes(content)
    sign(newest)
    started = time.monotonic()
    with pytest.raises(CheckpointError):
        checkpoint.read(newest)
    assert time.monotonic() - started < 1.0


CHANGES = {
    "another shape": ("model", "head.1.bias", torch.zeros(9)),
    "another dtype": ("model", "head.1.bias", torch.zeros(8, dtype=torch.float64)),
    "an unknown key": ("model", "head.9.bias", torch.zeros(8)),
    "optimiser of another shape": ("optim", "exp_avg:head.1.bias", torch.zeros(9)),
}
STATE_CHANGES = {
    "rng": {"rng": {"cpu": "00ff"}},
    "rng text": {"rng": {"cpu": "xyz"}},
    "rng full of zeros": {"rng": {"cpu": "00" * 5056}},
    "rng number": {"rng": 7},
    "guard": {"guard": {"skipped": 1}},
    "settings": {"settings": "0" * 64},
    "extra": {"extra": {"os._extra_state": 1}},
}


def refused_by_a_run(toy, run, tmp_path, edit) -> str:
    """Train on with an edited newest checkpoint; what was printed. It must use step 21."""
    out = tmp_path / "run"
    shutil.copytree(run, out)
    folder = out / "checkpoints" / "step-00000024"
    edit(folder)
    text = io.StringIO()
    toy.train(out, resume=True, console=Console(text))
    assert "resumed from step 21 of 24" in text.getvalue()
    assert toy.final_bytes(out) == toy.final_bytes(run)
    return text.getvalue()


@pytest.mark.parametrize(("kind", "key", "value"), CHANGES.values(), ids=CHANGES.keys())
def test_tensors_that_do_not_fit_are_refused_before_anything_changes(
    toy, run, tmp_path, kind, key, value
):
    def edit(folder) -> None:
        path = folder / f"{kind}.safetensors"
        tensors = safetensors.torch.load_file(path)
        tensors[key] = value
        safetensors.torch.save_file(tensors, path)
        sign(folder)

    told = refused_by_a_run(toy, run, tmp_path, edit)
    assert "checkpoint refused" in told and key in told


@pytest.mark.parametrize("change", STATE_CHANGES.values(), ids=STATE_CHANGES.keys())
def test_a_state_that_does_not_fit_is_refused(toy, run, tmp_path, change):
    def edit(folder) -> None:
        state = json.loads((folder / "state.json").read_text()) | change
        (folder / "state.json").write_text(json.dumps(state))
        sign(folder)

    assert "checkpoint refused" in refused_by_a_run(toy, run, tmp_path, edit)


def test_a_damaged_newest_checkpoint_is_set_aside_and_the_previous_used(toy, run, tmp_path):
    def edit(folder) -> None:
        with open(folder / "model.safetensors", "r+b") as file:
            file.seek(-5, os.SEEK_END)
            file.write(b"\x00\x01")

    told = refused_by_a_run(toy, run, tmp_path, edit)
    assert "size or SHA-256 differs" in told
    assert (tmp_path / "run/checkpoints/refused-step-00000024").is_dir()


def test_a_run_without_any_usable_checkpoint_stops_and_says_so(toy, run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    for _, folder in checkpoint.newest_first(out / "checkpoints"):
        (folder / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        toy.train(out, resume=True)


@pytest.mark.parametrize("action", ["enospc", "readonly"])
@pytest.mark.parametrize(
    "point", ["begin", "mid_file", "after_file", "after_manifest", "before_rename"]
)
def test_a_full_or_readonly_disk_during_a_save_does_not_end_the_run(
    toy, run, tmp_path, forks, point, action
):
    out = tmp_path / "run"
    answer = forks.run(out, env={"FASTSSL_FAULT": f"checkpoint.{point}:{action}:4"})
    assert answer["code"] == 0, answer["text"]
    assert "checkpoint not saved" in answer["text"]
    assert toy.final_bytes(out) == toy.final_bytes(run)
    assert not list((out / "checkpoints").glob(".tmp-*"))


def test_a_disk_that_stays_full_keeps_the_old_checkpoints(toy, tmp_path, forks):
    """Not simulated: the kernel refuses to let any file of the child grow beyond the limit."""
    out = tmp_path / "run"
    first = forks.run(out, env={"FASTSSL_FAULT": "loop.after_step:term:6"})
    assert first["code"] == 143
    before = {p: p.read_bytes() for p in (out / "checkpoints").rglob("*") if p.is_file()}
    answer = forks.run(out, config={"resume": True}, file_limit=4096)
    assert answer["code"] == 0, answer["text"]
    # Steps 9, 12, ... 24, and once more at the end of the run.
    assert answer["text"].count("checkpoint not saved") == 7
    after = {p: p.read_bytes() for p in (out / "checkpoints").rglob("*") if p.is_file()}
    assert after == before


def test_a_disk_that_is_full_from_the_start_promises_no_older_checkpoint(
    toy, tmp_path, monkeypatch
):
    def full(handle):
        raise OSError(28, "No space left on device")

    text = io.StringIO()
    monkeypatch.setattr(checkpoint.os, "fsync", full)
    monkeypatch.setattr("fastssl.engine.run_folder.write_text", lambda *_: None)
    monkeypatch.setattr("fastssl.engine.run_folder.write_json", lambda *_: None)
    result, _ = toy.train(tmp_path / "run", console=Console(text))
    assert result.saved_at == 0
    assert "there is no older one" in text.getvalue() and "step 0)" not in text.getvalue()


def test_metrics_that_do_not_fit_on_the_disk_do_not_end_the_run(toy, run, tmp_path, forks):
    out = tmp_path / "run"
    answer = forks.run(out, env={"FASTSSL_FAULT": "metrics.before_line:enospc:5"})
    assert answer["code"] == 0, answer["text"]
    assert "metrics not written" in answer["text"]
    lost = toy.final_bytes(run)["metrics"]
    assert toy.final_bytes(out)["metrics"] == lost[:4] + lost[5:]


def test_pruning_keeps_the_newest_two_at_least(tmp_path):
    snapshot = {"model": {"w": torch.ones(3)}, "optim": {"m:w": torch.ones(3)}}
    for step in range(1, 6):
        content = Snapshot(**snapshot, state={"step": step})
        checkpoint.save(tmp_path, content, step=step, keep=1)
    assert [step for step, _ in checkpoint.newest_first(tmp_path)] == [5, 4]


def test_nothing_is_pruned_when_the_new_checkpoint_does_not_verify(tmp_path, monkeypatch):
    snapshot = Snapshot(model={"w": torch.ones(3)}, optim={"m:w": torch.ones(3)}, state={"step": 1})
    for step in (1, 2):
        checkpoint.save(tmp_path, snapshot, step=step, keep=2)
    written = checkpoint._write_synced
    monkeypatch.setattr(
        checkpoint, "_write_synced", lambda path, content: written(path, content.swapcase())
    )
    with pytest.raises(CheckpointError):
        checkpoint.save(tmp_path, snapshot, step=3, keep=2)
    assert [step for step, _ in checkpoint.newest_first(tmp_path)] == [2, 1]


def test_state_that_is_neither_tensor_nor_json_is_refused_before_training(toy, tmp_path):
    method = toy.ToyMethod()
    method.counting.get_extra_state = lambda: {"calls": object()}
    with pytest.raises(ValueError, match="counting._extra_state.*buffer"):
        toy.train(tmp_path / "run", method=method)


def test_tensors_that_share_memory_survive_the_round_trip(tmp_path):
    from fastssl.engine.state import _portable

    w = torch.arange(6.0)
    tied = _portable({"a": w, "b": w, "half": w[:3]})
    path = checkpoint.save(tmp_path, Snapshot(tied, {}, {"step": 1}), step=1, keep=2)
    assert torch.equal(checkpoint.read(path).model["half"], w[:3])


HEARD: list[str] = []
LISTENING = [False]
WATCHED = ("os.system", "subprocess.Popen", "exec", "socket.connect", "pickle.find_class")


def hear(event: str, arguments: tuple) -> None:
    """Audit hook; hooks cannot be removed, so it is switched. It outlives this module's names."""
    if not LISTENING or not LISTENING[0]:
        return
    writes = event == "open" and isinstance(arguments[1], str) and "w" in arguments[1]
    if event in WATCHED or writes:
        HEARD.append(event)


def test_loading_runs_nothing_connects_nowhere_and_writes_nothing(newest):
    HEARD.clear()
    sys.addaudithook(hear)
    for content in HOSTILE_TENSORS.values():
        (newest / "model.safetensors").write_bytes(content)
        sign(newest)
        LISTENING[0] = True
        try:
            with pytest.raises(CheckpointError):
                checkpoint.read(newest)
        finally:
            LISTENING[0] = False
    assert HEARD == []


def test_the_hook_that_heard_nothing_can_hear(tmp_path):
    HEARD.clear()
    sys.addaudithook(hear)
    LISTENING[0] = True
    (tmp_path / "canary").write_text("")
    LISTENING[0] = False
    assert "open" in HEARD

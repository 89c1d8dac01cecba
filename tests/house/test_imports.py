"""What an import brings along. Its price in seconds: ``python -m benchmarks.systems startup``."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.house.tree import ROOT

HEAVY = ("nvidia.dali", "tyro", "rich", "torchvision", "torchaudio", "triton", "safetensors")
TORCH_FREE = (
    "fastssl",
    "fastssl._cli",
    "fastssl.engine.config",
    "fastssl.evaluate",
    "fastssl.methods",
    "fastssl.methods.configs",
    "fastssl.recipes.catalogue",
    "fastssl.train",
)
SPY = """
import json, sys
connections = []
sys.addaudithook(lambda event, _: event == "socket.connect" and connections.append(event))
for name in {before!r}:
    __import__(name)
known = set(sys.modules)
for name in {names!r}:
    __import__(name)
print(json.dumps({{"new": sorted(set(sys.modules) - known), "connections": connections}}))
"""


def imported(*names, before=()):
    """Modules that a fresh process gains by importing `names` after `before`."""
    script = SPY.format(names=names, before=before)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_loss_brings_neither_the_engine_nor_its_packages():
    new = imported("fastssl.losses", before=("torch",))["new"]
    assert [name for name in new if name in HEAVY] == []
    rooms = {name.split(".")[1] for name in new if name.startswith("fastssl.")}
    assert rooms == {"losses", "kernels"}


PEERS = ("lightly", "open_clip", "pytorch_metric_learning", "solo")


@pytest.mark.parametrize("peer", PEERS)
def test_a_replacement_brings_losses_and_kernels_and_not_its_original(peer):
    new = imported(f"fastssl.compat.{peer}", before=("torch",))["new"]
    assert [name for name in new if name in (*HEAVY, *PEERS, "scipy", "sklearn")] == []
    rooms = {name.split(".")[1] for name in new if name.startswith("fastssl.")}
    assert {"compat", "kernels"} <= rooms <= {"compat", "kernels", "losses"}


def test_importing_a_loss_talks_to_nobody():
    assert imported("fastssl.losses")["connections"] == []


@pytest.mark.parametrize("name", TORCH_FREE)
def test_commands_answer_before_torch_is_imported(name):
    new = imported(name)["new"]
    assert [heavy for heavy in ("torch", "numpy", "torchvision") if heavy in new] == []


def test_kernels_refuse_to_be_imported_under_another_name():
    script = "import sys; sys.path.insert(0, '.'); import kernels"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "fastssl.kernels" in done.stderr.splitlines()[-1]

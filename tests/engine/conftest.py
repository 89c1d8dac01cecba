"""The toy training, in this process (``toy``) and in processes that may be killed (``forks``)."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

_TOY = Path(__file__).with_name("toy.py")


@pytest.fixture(scope="session")
def toy():
    spec = importlib.util.spec_from_file_location("engine_toy", _TOY)
    module = importlib.util.module_from_spec(spec)
    sys.modules["engine_toy"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def one_thread():
    """Byte equality is promised at a fixed thread count; one is also the fastest for toys."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Forks:
    """Runs the toy training in a child process of a server that has imported torch already."""

    def __init__(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("FASTSSL_")}
        self._server = subprocess.Popen(
            [sys.executable, str(_TOY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, "OMP_NUM_THREADS": "1"},
        )

    def run(self, out: Path, **request) -> dict:
        """Exit code (negative: ended by that signal), seconds, and what was printed."""
        log = out.with_name(out.name + ".log")
        log.unlink(missing_ok=True)
        line = json.dumps({"out": str(out), "log": str(log), **request})
        self._server.stdin.write(line + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        return {**answer, "text": log.read_text() if log.exists() else ""}

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait(timeout=30)
        self._server.stdout.close()


@pytest.fixture(scope="session")
def forks():
    server = Forks()
    yield server
    server.close()

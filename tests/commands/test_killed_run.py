"""The real command, SimCLR on Spirograph, killed in the middle of training again and again."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time

# The command, with readouts on few images: scoring is not what is killed here.
PROGRAM = """
import sys
from fastssl.recipes import assemble
from fastssl.train import main
assemble.LIVE = assemble.FINAL = {"train_limit": 200, "test_limit": 50}
sys.exit(main(sys.argv[1:]))
"""
FLAGS = "--max-steps 80 --batch-size 32 --save-every 5 --log-every 1".split()
KILLS = 2


def start(out):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    again = ["--resume"] if out.exists() else []
    command = [sys.executable, "-c", PROGRAM, *FLAGS, *again, "--out", str(out)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def lines(out):
    try:
        return (out / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def killed_after(out, new_lines):
    """Start the command and SIGKILL it when ``new_lines`` more lines are logged."""
    process, deadline = start(out), time.monotonic() + 120
    before = lines(out)
    while process.poll() is None and lines(out) < before + new_lines:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    told, _ = process.communicate()
    return process.returncode, told


def final_bytes(out):
    names = ["export/backbone.safetensors", "checkpoints/step-00000080/model.safetensors"]
    return [(out / name).read_bytes() for name in names]


def test_simclr_killed_while_it_trains_ends_in_the_same_bytes(tmp_path):
    whole = start(tmp_path / "whole")
    told, _ = whole.communicate(timeout=120)
    assert whole.returncode == 0, told
    draw, codes = random.Random(0), []
    for _ in range(KILLS):
        code, told = killed_after(tmp_path / "cut", draw.randint(5, 25))
        assert code in (-9, 0), told
        codes.append(code)
    assert codes[0] == -9, "the first kill must hit a training run"
    last = start(tmp_path / "cut")
    told, _ = last.communicate(timeout=120)
    assert last.returncode == 0, told
    assert "resumed from step" in told
    assert final_bytes(tmp_path / "cut") == final_bytes(tmp_path / "whole")

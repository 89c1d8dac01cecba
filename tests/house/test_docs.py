"""What the documents say works: snippets run, commands, flags and paths exist."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest

from tests.house.tree import ROOT, project_files

DOCUMENTS = [path for path in project_files() if path.suffix == ".md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
MODULE = re.compile(r"python -m ((?:fastssl|benchmarks)[\w.]*)")


def text_of(path):
    return (ROOT / path).read_text(encoding="utf-8")


def snippets():
    for path in DOCUMENTS:
        for position, match in enumerate(FENCE.finditer(text_of(path))):
            if match[1] == "python":
                yield pytest.param(match[2], id=f"{path}-{position}")


@pytest.mark.parametrize("code", list(snippets()))
def test_a_python_snippet_runs_as_printed(code, tmp_path):
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir()), "a snippet leaves files behind"


def test_the_readme_shows_the_loss_and_the_two_lines():
    readme = text_of("README.md")
    assert [match for match in FENCE.finditer(readme) if match[1] == "python"]
    assert (
        'pip install -e ".[train]" && python -m fastssl.train --method simclr --compile' in readme
    )
    assert 'pip install -e ".[test]" && pytest' in readme


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_a_named_module_exists(path):
    named = {name.rstrip(".") for name in MODULE.findall(text_of(path))}
    assert [name for name in sorted(named) if importlib.util.find_spec(name) is None] == []


def test_every_flag_of_the_readme_is_a_flag():
    for command in ("fastssl.train", "fastssl.evaluate", "benchmarks.micro"):
        lines = [li for li in text_of("README.md").splitlines() if f"python -m {command}" in li]
        used = {flag for line in lines for flag in re.findall(r"(?<=\s)--[a-z][\w-]*", line)}
        verb = ["ridge"] if command == "fastssl.evaluate" else []
        arguments = [sys.executable, "-m", command, *verb, "--help"]
        shown = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True).stdout
        assert [flag for flag in sorted(used) if flag not in shown] == [], command


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_a_linked_file_exists(path):
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text_of(path))
    missing = [name for name in targets if not (ROOT / path.parent / name).exists()]
    assert missing == []


def test_decisions_are_numbered_and_say_what_they_cost():
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(path.name[:4]) for path in decisions] == list(range(1, len(decisions) + 1))
    for path in decisions:
        headings = re.findall(r"^## (.+)$", path.read_text(encoding="utf-8"), re.M)
        assert headings == ["Context", "Choice", "Price"], path.name

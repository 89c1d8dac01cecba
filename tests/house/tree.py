"""What the rules look at: the files that belong to the project, and their syntax trees."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
IGNORED = {"build", "dist", "runs", "__pycache__"}
PRODUCT = ("fastssl", "kernels", "benchmarks", "setup.py")


@cache
def project_files() -> tuple[Path, ...]:
    """Every file git tracks or would track; without git, every file that is not a build product."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "-co", "--exclude-standard"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        found = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
        return tuple(p for p in found if not hidden_or_built(p))
    names = (Path(name) for name in done.stdout.split("\0") if name)
    return tuple(sorted(name for name in names if (ROOT / name).is_file()))


def hidden_or_built(path: Path) -> bool:
    """Not a source file, by its folder."""
    return any(part.startswith(".") or part in IGNORED for part in path.parts)


def python_files(*rooms: str) -> list[Path]:
    """Python files, relative to the root, below any of `rooms` (all rooms when none is named)."""
    files = [path for path in project_files() if path.suffix == ".py"]
    return [path for path in files if not rooms or path.parts[0] in rooms]


@cache
def parsed(path: Path) -> ast.Module:
    """Syntax tree of a file relative to the root."""
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=str(path))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a file, nested ones too."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def dotted(node: ast.expr) -> str:
    """``a.b.c`` as written; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""

"""The package as it is once installed, without installing it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def installed_layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder holding fastssl with kernels/ inside it, as a wheel lays them out.

    Tools that read the tree (mypy, import-linter) cannot follow the mapping of `kernels` to
    `fastssl.kernels`; test_packaging proves that wheels have this layout.
    """
    site = tmp_path_factory.mktemp("site")
    no_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "fastssl", site / "fastssl", ignore=no_caches)
    shutil.copytree(ROOT / "kernels", site / "fastssl" / "kernels", ignore=no_caches)
    return site

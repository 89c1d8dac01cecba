"""Says which extra to install when a package of it is missing."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


class MissingExtra(ImportError):
    """A package that the core install does not bring; the message names the extra that does."""


def require(package: str, *, extra: str) -> ModuleType:
    """Import ``package``, or raise MissingExtra saying how to install it."""
    if importlib.util.find_spec(package.partition(".")[0]) is None:
        raise MissingExtra(
            f"the package {package!r} is not installed; "
            f'it comes with: pip install "fastssl[{extra}]"'
        )
    return importlib.import_module(package)


def check(*packages: str, extra: str) -> None:
    """Raise MissingExtra unless all ``packages`` can be found. Imports none of them."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"the package{'s' if len(missing) > 1 else ''} {', '.join(missing)} "
            f"{'are' if len(missing) > 1 else 'is'} not installed; "
            f'this command needs: pip install "fastssl[{extra}]"'
        )

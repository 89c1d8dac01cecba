"""A planted bug."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """`old` becomes `new` in `file`; `tests` are pytest arguments, of which one must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    library: bool = True  # False: run without the compiled library, so that the reference answers

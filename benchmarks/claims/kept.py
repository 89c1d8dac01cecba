"""What was measured or trained before is used again only where it is what would be made now."""

from __future__ import annotations

from collections.abc import Mapping

_ABSENT = "not there"


def refuse_differences(where: str, kept: Mapping[str, object], asked: Mapping[str, object]) -> None:
    """Raise RuntimeError, naming each entry of ``kept`` that is not as ``asked``, if there is one.

    Args:
        where: the file or folder that holds it.
    """
    names = [*asked, *(name for name in kept if name not in asked)]
    told = [
        f"{name} is {kept.get(name, _ABSENT)!r}, now {asked.get(name, _ABSENT)!r}"
        for name in names
        if kept.get(name, _ABSENT) != asked.get(name, _ABSENT)
    ]
    if told:
        raise RuntimeError(
            f"{where}: kept from another run: {'; '.join(told)}. Remove it to make it anew, or "
            "give another folder with --work"
        )

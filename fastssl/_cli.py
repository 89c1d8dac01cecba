"""What the commands share: flags from dataclasses, one clear line for a user's error."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from fastssl._extras import MissingExtra

T = TypeVar("T")
TRACEBACK = "FASTSSL_TRACEBACK"  # set it to see where an error came from


def parse(kind: type[T], argv: Sequence[str], *, prog: str, text: str, default: T) -> T:
    """Flat flags -> ``kind``, with tyro's "did you mean". Exits on --help and on a typo."""
    import tyro

    flat = (tyro.conf.OmitArgPrefixes,)
    return tyro.cli(
        kind, args=list(argv), prog=prog, description=text, default=default, config=flat
    )


def parse_verb(verbs: Mapping[str, type[Any]], argv: Sequence[str], *, prog: str, text: str) -> Any:
    """``VERB --flag ...`` -> an instance of the verb's dataclass. Exits as ``parse`` does."""
    import tyro

    return tyro.extras.subcommand_cli_from_dict(
        dict(verbs), args=list(argv), prog=prog, description=text
    )


def flag_value(argv: Sequence[str], flag: str) -> str | None:
    """The value given to ``flag``, as ``--flag value`` or ``--flag=value``; the last one wins."""
    found = None
    for position, word in enumerate(argv):
        if word == flag and position + 1 < len(argv):
            found = argv[position + 1]
        elif word.startswith(f"{flag}="):
            found = word.partition("=")[2]
    return found


def guarded(command: Callable[[], int]) -> int:
    """Run ``command``; a user's error becomes one line on stderr and exit status 2."""
    try:
        return command()
    except KeyboardInterrupt:
        print("fastssl: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, MissingExtra, OSError) as error:
        if os.environ.get(TRACEBACK):
            raise
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "; make room there, or choose another disk" if full else ""
        print(f"fastssl: {' '.join(str(error).split())}{advice}", file=sys.stderr)
        return 2

"""Fault points: named instants where a test makes the process die or meet a full disk.

``fault("checkpoint.before_rename")`` does nothing unless the environment holds
``FASTSSL_FAULT=name:action:count``; at the count-th passage through that name the action happens.
Actions: ``kill``, ``term``, ``int`` (signals to itself), ``enospc``, ``readonly`` (OSError).
"""

from __future__ import annotations

import errno
import os
import signal

_VARIABLE = "FASTSSL_FAULT"
_SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}
_ERRORS = {"enospc": errno.ENOSPC, "readonly": errno.EROFS}
_passages: dict[str, int] = {}


def fault(name: str) -> None:
    """Pass the fault point ``name``; see the module docstring for what may happen."""
    rule = os.environ.get(_VARIABLE)
    if rule is None:
        return
    wanted, action, count = rule.split(":")
    if wanted != name:
        return
    _passages[name] = _passages.get(name, 0) + 1
    if _passages[name] != int(count):
        return
    if action in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[action])
    else:
        number = _ERRORS[action]
        raise OSError(number, os.strerror(number), f"fault point {name}")

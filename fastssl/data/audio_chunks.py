"""Is the sound that a WAV or AIFF file announces there as a whole? Its chunk sizes tell.

libsndfile takes a file that was cut short for a shorter sound. Formats: RIFF and RIFX (Microsoft,
1991), RF64 (EBU Tech 3306), AIFF and AIFF-C (Apple, 1989 and 1991).
"""

from __future__ import annotations

import struct

from fastssl.data.headers import BadFile

_FORMS = {b"RIFF": ("<", b"data"), b"RF64": ("<", b"data"), b"RIFX": (">", b"data"),
          b"FORM": (">", b"SSND")}  # fmt: skip
_UNKNOWN = 0x7FFFF000  # who writes to a pipe puts this or more, not knowing the length
_MOST_CHUNKS = 4096  # a file of empty chunks must not keep us busy


def check_whole(content: bytes) -> None:
    """BadFile where the chunk of samples reaches past the end of ``content``."""
    if content[:4] not in _FORMS:
        return
    order, samples = _FORMS[content[:4]]
    position, long_size = 12, None
    for _ in range(_MOST_CHUNKS):
        if position + 8 > len(content):
            return  # no samples at all: the decoder's matter
        name, size = struct.unpack_from(order + "4sI", content, position)
        position += 8
        if name == b"ds64" and content[:4] == b"RF64" and position + 16 <= len(content):
            (long_size,) = struct.unpack_from("<8xQ", content, position)
        if name == samples:
            size = long_size if long_size is not None and size == 0xFFFFFFFF else size
            there = len(content) - position
            if there < size and (long_size is not None or size < _UNKNOWN):
                raise BadFile(f"cut off: {there} of {size} bytes of sound are there")
            return
        position += size + size % 2

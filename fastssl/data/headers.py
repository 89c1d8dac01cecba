"""Is this file an image we can use, and how large is it? Answered from its header, in microseconds.

The content decides, never the extension. Formats: JPEG (ITU T.81), PNG (W3C, 3rd edition), WebP
(RFC 9649), BMP. Sizes are those after the EXIF orientation is applied. ``plain`` marks the JPEGs
that every decoder turns into the same RGB pixels; the rest goes through PIL in every backend.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

# Pillow's own warning limit (256 MiB of RGB): a larger picture is refused before it is decoded.
MAX_PIXELS = 89_478_485
_TAIL = 65_536
_PLAIN_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive Huffman
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# After 0xFF in a scan: stuffing, fill, restarts, and the segments between two scans or at the end
_EXPECTED = np.zeros(256, dtype=bool)
_EXPECTED[[0x00, 0xFF, *range(0xD0, 0xD8), 0xC4, *range(0xD9, 0xDE), *range(0xE0, 0xF0), 0xFE]] = 1
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class BadFile(Exception):
    """The file cannot be used; the text is the reason shown to the user."""


@dataclass(frozen=True)
class Header:
    """Size in pixels after orientation, the EXIF orientation, and the choice of decoders."""

    width: int
    height: int
    orientation: int = 1
    plain: bool = False


def check(path: str) -> Header:
    """The header of the image at ``path``; BadFile says why it cannot be used."""
    try:
        check_regular(path, "an image")
        with open(path, "rb") as file:
            return inspect(file)
    except FileNotFoundError:
        raise BadFile(_missing(path)) from None
    except PermissionError:
        raise BadFile("no permission to read it") from None
    except OSError as error:
        raise BadFile(f"cannot be read: {error.strerror or error}") from None


def check_regular(path: str, what: str = "a file") -> None:
    """BadFile for a directory, and for a pipe or device, which might never end; or OSError."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise BadFile(f"a directory with the name of {what}")
    if not stat.S_ISREG(mode):
        raise BadFile("not a regular file")


def inspect(file: BinaryIO) -> Header:
    """The header of an open image that begins at position 0; BadFile as in ``check``."""
    try:
        header = _parse(file)
    except (struct.error, IndexError):
        raise BadFile("the header is cut off") from None
    if header.width < 1 or header.height < 1:
        raise BadFile(f"the header says {header.width} x {header.height} pixels")
    if header.width * header.height > MAX_PIXELS:
        raise BadFile(
            f"the header says {header.width} x {header.height} pixels, over the limit of "
            f"{MAX_PIXELS} (decompression bomb?)"
        )
    return header


def _parse(file: BinaryIO) -> Header:
    start = file.read(32)
    if not start:
        raise BadFile("the file is empty (0 bytes)")
    if start.startswith(b"\xff\xd8\xff"):
        return _jpeg(file)
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(file)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return _webp(file, start)
    if start.startswith(b"BM"):
        return _bmp(start)
    raise BadFile(f"the content is not JPEG, PNG, WebP or BMP (it starts with {start[:8]!r})")


def _jpeg(file: BinaryIO) -> Header:
    """Walks the segments up to the first scan; a file without an end-of-image marker is cut off."""
    file.seek(2)
    frame, orientation, rgb = None, 1, False
    while True:
        byte = file.read(1)
        if byte != b"\xff":
            raise BadFile("the JPEG header is damaged" if byte else "the header is cut off")
        while byte == b"\xff":
            byte = file.read(1)
        marker = byte[0]
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # no payload
            continue
        (length,) = struct.unpack(">H", file.read(2))
        if length < 2:
            raise BadFile("the JPEG header is damaged")
        payload = file.read(length - 2)
        if marker in _FRAMES:
            precision, height, width, channels = struct.unpack(">BHHB", payload[:6])
            plain = marker in _PLAIN_FRAMES and precision == 8 and channels in (1, 3)
            frame = (width, height, plain)
        elif marker == 0xE1 and payload.startswith(b"Exif\0\0"):
            orientation = _exif_orientation(payload[6:])
        elif marker == 0xEE and payload.startswith(b"Adobe"):
            rgb = payload[11:12] == b"\0"  # stored without the usual YCbCr transform
        elif marker == 0xDA:
            break
    if frame is None:
        raise BadFile("the JPEG has no frame header")
    if not _has_end_of_image(file):
        raise BadFile("the JPEG is cut off (no end-of-image marker)")
    width, height, plain = frame
    return _oriented(width, height, orientation, plain=plain and not rgb)


def has_sound_scan(content: bytes) -> bool:
    """Whether only markers that may stand there interrupt the pixels of this JPEG.

    At any other marker some decoders go on with what they have and others give up.
    """
    position = 2
    while content[position : position + 2] != b"\xff\xda":
        if content[position : position + 1] != b"\xff":
            return False
        position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    byte_n = np.frombuffer(content, np.uint8)[position + 2 :]
    after_ff = byte_n[1:][byte_n[:-1] == 0xFF]
    return bool(_EXPECTED[after_ff].all())


def _has_end_of_image(file: BinaryIO) -> bool:
    scan = file.tell()
    file.seek(0, os.SEEK_END)
    file.seek(max(scan, file.tell() - _TAIL))
    if b"\xff\xd9" in file.read():
        return True
    file.seek(scan)  # a long trailer, such as a motion photo's film, may follow the marker
    return b"\xff\xd9" in file.read()


def _exif_orientation(tiff: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (offset,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, offset)
        for entry in range(min(count, 512)):
            tag, kind, _ = struct.unpack_from(order + "HHI", tiff, offset + 2 + 12 * entry)
            if tag == 0x0112 and kind == 3:
                (value,) = struct.unpack_from(order + "H", tiff, offset + 10 + 12 * entry)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass  # a damaged EXIF block does not make the picture unusable
    return 1


def _png(file: BinaryIO) -> Header:
    """IHDR gives the size; an eXIf chunk before the pixels may turn the picture."""
    file.seek(8)
    width = height = 0
    orientation = 1
    while True:
        length, kind = struct.unpack(">I4s", file.read(8))
        if not width and kind != b"IHDR":
            raise BadFile("the PNG header is damaged")
        if kind == b"IHDR":
            width, height = struct.unpack(">II", file.read(8))
            if width == 0:
                raise BadFile(f"the header says {width} x {height} pixels")
            file.seek(length - 8 + 4, os.SEEK_CUR)
        elif kind == b"eXIf" and length <= _TAIL:
            orientation = _exif_orientation(file.read(length))
            file.seek(4, os.SEEK_CUR)
        elif kind == b"IDAT":
            return _oriented(width, height, orientation)
        else:
            file.seek(length + 4, os.SEEK_CUR)


def _webp(file: BinaryIO, start: bytes) -> Header:
    kind = start[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", start, 26)
        return Header(width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L":
        (word,) = struct.unpack_from("<I", start, 21)
        return Header((word & 0x3FFF) + 1, (word >> 14 & 0x3FFF) + 1)
    if kind == b"VP8X":
        width = int.from_bytes(start[24:27], "little") + 1
        height = int.from_bytes(start[27:30], "little") + 1
        orientation = _webp_orientation(file) if start[20] & 8 else 1
        return _oriented(width, height, orientation)
    raise BadFile("the WebP header is damaged")


def _webp_orientation(file: BinaryIO) -> int:
    file.seek(12)
    while True:
        chunk = file.read(8)
        if len(chunk) < 8:
            return 1
        kind, length = struct.unpack("<4sI", chunk)
        if kind == b"EXIF" and length <= _TAIL:
            return _exif_orientation(file.read(length).removeprefix(b"Exif\0\0"))
        file.seek(length + length % 2, os.SEEK_CUR)


def _bmp(start: bytes) -> Header:
    (size,) = struct.unpack_from("<I", start, 14)
    if size == 12:
        width, height = struct.unpack_from("<HH", start, 18)
    else:
        width, height = struct.unpack_from("<ii", start, 18)
    return Header(width, abs(height))


def _oriented(width: int, height: int, orientation: int, *, plain: bool = False) -> Header:
    if orientation in _TURNED:
        width, height = height, width
    return Header(width, height, orientation, plain)


def _missing(path: str) -> str:
    return "the link points to nothing" if os.path.islink(path) else "no such file"

"""A file to upright 8-bit RGB pixels, through PIL. What PIL cannot decode is bad everywhere.

EXIF orientation is applied. Transparency is laid over white. Palettes are expanded, grey is
repeated, CMYK is converted, 16-bit grey keeps its high byte, the first frame of an animation is
taken. A truncated file is bad: half a picture is not a sample.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastssl.data.headers import BadFile, Header

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # a camera's MPO opens as JPEG
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DEEP = ("I;16", "I;16B", "I;16L", "I")


def decode(content: bytes, header: Header) -> Image.Image:
    """An upright RGB image of the size that the header check found; else BadFile."""
    try:
        image = _rgb(content)
    except MemoryError:
        raise
    except Exception as error:  # PIL raises nearly anything on hostile bytes
        raise BadFile(f"cannot be decoded: {_one_line(error)}") from None
    if header.orientation in _TURNS:
        image = image.transpose(_TURNS[header.orientation])
    if image.size != (header.width, header.height):
        raise BadFile(
            f"decodes to {image.width} x {image.height} pixels, but its header says "
            f"{header.width} x {header.height}"
        )
    return image


def to_bmp(image: Image.Image) -> NDArray[np.uint8]:
    """The image as an uncompressed BMP, the cheapest form another decoder can read."""
    buffer = io.BytesIO()
    image.save(buffer, "BMP")
    return np.frombuffer(buffer.getbuffer(), np.uint8)


def _rgb(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content), formats=_FORMATS)
    image.load()
    return rgb(image)


def rgb(image: Image.Image) -> Image.Image:
    """The loaded image in mode RGB, 8 bits, by the module's rules."""
    if image.mode in _DEEP:
        deep = np.asarray(image).astype(np.int64)
        return Image.fromarray((deep >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, with_alpha).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

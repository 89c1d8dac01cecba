"""Odd but good images give the right pixels, the same through DALI and through PIL."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from fastssl.data import dali_graph
from fastssl.data.dali_decoder import DaliDecoder
from fastssl.data.decode import decode
from fastssl.data.headers import MAX_PIXELS, BadFile, check, has_sound_scan
from fastssl.data.pil_decoder import PilDecoder
from fastssl.data.store import Encoded, printable
from tests.data.pictures import damaged, stored


def scene(width: int = 40, height: int = 24) -> Image.Image:
    row, column = np.mgrid[:height, :width]
    pixels = np.stack([6 * column, 10 * row, 255 - 3 * column - 5 * row], axis=2)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def read_back(tmp_path, content: bytes) -> np.ndarray:
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    return np.asarray(decode(content, check(str(path)))).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_lossless_files_come_back_exactly(tmp_path, kind):
    content = stored(scene(), kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(read_back(tmp_path, content), np.asarray(scene()))


def test_transparency_is_laid_over_white(tmp_path):
    black = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    black.putpixel((1, 1), (0, 100, 0, 255))
    for kind in ("PNG", "WEBP"):
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        pixels = read_back(tmp_path, stored(black, kind, **options))
        assert (pixels[0, 0] == 255).all() and (pixels[1, 1] == (0, 100, 0)).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 200, 50, 25])
    palette.putpixel((2, 2), 0)
    pixels = read_back(tmp_path, stored(palette, "PNG", transparency=0))
    assert (pixels[2, 2] == 255).all() and (pixels[0, 0] == (200, 50, 25)).all()


def test_sixteen_bits_keep_their_high_byte_and_grey_is_repeated(tmp_path):
    deep = (np.arange(64).reshape(8, 8) * 1000).astype(np.uint16)
    pixels = read_back(tmp_path, stored(Image.fromarray(deep), "PNG"))
    assert np.array_equal(pixels, np.repeat((deep >> 8)[:, :, None], 3, axis=2))
    grey = scene().convert("L")
    assert np.array_equal(read_back(tmp_path, stored(grey, "PNG"))[:, :, 2], np.asarray(grey))


def test_cmyk_shows_the_colours_it_was_made_from(tmp_path):
    content = stored(scene().convert("CMYK"), "JPEG", quality=98)
    assert np.abs(read_back(tmp_path, content) - np.asarray(scene())).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_turns_the_picture_in_both_backends(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned"
    path.write_bytes(stored(scene(), kind, exif=exif, quality=95))
    header = check(str(path))
    upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    assert (header.width, header.height) == upright.size
    assert np.array_equal(np.asarray(decode(path.read_bytes(), header)), np.asarray(upright))
    for decoder in decoders():
        (image,) = decoder.images(encoded(path))
        assert levels_apart(image, upright).mean() < 0.5


def decoders():
    pool = ThreadPoolExecutor(2)
    return DaliDecoder(pool, threads=2, device_id=None), PilDecoder(pool)


def encoded(*paths) -> list[Encoded]:
    return [Encoded(str(path), Path(path).read_bytes(), check(str(path))) for path in paths]


def levels_apart(image: torch.Tensor, other) -> np.ndarray:
    """Absolute difference of (3, H, W) and (H, W, 3), in levels of 0..255."""
    return np.abs(image.permute(1, 2, 0).numpy().astype(int) - np.asarray(other).astype(int))


def photos(tmp_path, count: int) -> list[Path]:
    paths = [tmp_path / f"{i}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        noise = np.random.default_rng(i).integers(0, 255, (9, 12, 3), dtype=np.uint8)
        photo = Image.fromarray(noise).resize((150 + 5 * i, 110), Image.Resampling.BICUBIC)
        photo.save(path, quality=90, subsampling=i % 3)
    return paths


def test_the_decoders_agree_to_the_rounding_of_the_inverse_transform(tmp_path):
    """What libjpeg-turbo's and nvImageCodec's builds may differ by; the mean is far below."""
    paths = photos(tmp_path, 12)
    scene().save(tmp_path / "plain.png")
    samples = encoded(*paths, tmp_path / "plain.png")
    ours, theirs = (decoder.images(samples) for decoder in decoders())
    for image, same in zip(ours, theirs, strict=True):
        assert image.dtype == torch.uint8 and image.stride(0) == 1, "HWC in memory, no copy"
        apart = levels_apart(image, same.permute(1, 2, 0))
        assert apart.max() <= 3 and apart.mean() < 0.1


def test_regions_are_what_the_whole_shows_there(tmp_path):
    """At the rim of a region the chroma is upsampled without its neighbour: a few levels."""
    samples = encoded(*photos(tmp_path, 6))
    region_VN4 = np.array([[[10 + i, 20, 100, 64] for i in range(6)], [[0, 0, 150, 110]] * 6])
    dali, _ = decoders()
    whole, views = dali.images(samples), dali.regions(samples, region_VN4)
    for regions, box_N4 in zip(views, region_VN4, strict=True):
        for region, image, (left, top, width, height) in zip(regions, whole, box_N4, strict=True):
            part = image[:, top : top + height, left : left + width]
            assert region.shape == part.shape
            apart = levels_apart(region, part.permute(1, 2, 0))
            assert apart[2:-2, 2:-2].max(initial=0) <= 1 and apart.mean() < 0.5


def test_a_damaged_scan_gets_one_verdict(tmp_path):
    """A marker that cannot stand in a scan: DALI would go on, PIL gives up; PIL decides."""
    content = bytearray(stored(scene(200, 160), "JPEG", quality=95))
    middle = len(content) * 2 // 3
    content[middle : middle + 2] = b"\xff\x97"
    assert not has_sound_scan(bytes(content))
    whole = tmp_path / "whole.jpg"
    whole.write_bytes(stored(scene(200, 160), "JPEG", quality=95, progressive=True))
    assert has_sound_scan(whole.read_bytes())
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(content)
    for decoder in decoders():
        failures = decoder.images(encoded(whole, broken))
        assert list(failures) == [1] and "cannot be decoded" in failures[1]


def test_a_file_that_breaks_the_pipeline_is_found_and_the_pipeline_rebuilt(tmp_path):
    paths = [tmp_path / f"{i}.jpg" for i in range(3)]
    for path in paths:
        path.write_bytes(stored(scene(), "JPEG"))
    paths[1].write_bytes(damaged(stored(scene(), "JPEG")))
    samples = encoded(*paths)
    assert samples[1].header.plain
    dali, _ = decoders()
    region_1N4 = np.array([[[0, 0, 30, 20]] * 3])
    for decode_all in (dali.images, lambda some: dali.regions(some, region_1N4)):
        failures = decode_all(samples)
        assert list(failures) == [1] and "cannot be decoded" in failures[1]
        good = [samples[0], samples[2], samples[0]]
        made = decode_all(good)
        first = made[0] if len(made) == 1 else made
        assert torch.equal(first[0], first[2])
    dali.close()


def test_a_file_that_only_dali_refuses_is_decoded_by_pil(tmp_path, monkeypatch):
    paths = [tmp_path / f"{i}.jpg" for i in range(2)]
    for i, path in enumerate(paths):
        path.write_bytes(stored(scene(40 + i), "JPEG"))
    samples = encoded(*paths)
    dali, pil = decoders()
    build = dali_graph.build

    class Picky:
        def __init__(self, pipeline):
            self.pipeline = pipeline

        def feed_input(self, name, contents):
            self.contents = contents
            self.pipeline.feed_input(name, contents)

        def run(self):
            if any(content.tobytes() == samples[1].content for content in self.contents):
                raise RuntimeError("not for me")
            return self.pipeline.run()

    expected = dali.images(samples)
    dali.close()
    monkeypatch.setattr(dali_graph, "build", lambda **options: Picky(build(**options)))
    made = dali.images(samples)
    assert torch.equal(made[0], expected[0])
    assert torch.equal(made[1], pil.images(samples)[1])
    dali.close()


def test_a_trailer_after_the_picture_does_no_harm(tmp_path):
    path = tmp_path / "motion.jpg"
    path.write_bytes(stored(scene(), "JPEG") + bytes(200_000))
    assert check(str(path)).width == 40
    for decoder in decoders():
        (image,) = decoder.images(encoded(path))
        assert levels_apart(image, scene()).mean() < 3


def test_special_files_and_locked_ones_are_refused_without_opening_them(tmp_path, monkeypatch):
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    with pytest.raises(BadFile, match="not a regular file"):
        check(str(pipe))
    locked = tmp_path / "locked.jpg"
    locked.write_bytes(stored(scene(), "JPEG"))

    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(BadFile, match="no permission"):
        check(str(locked))


def test_a_giant_header_is_refused_before_decoding(tmp_path):
    content = bytearray(stored(scene(), "BMP"))
    content[18:26] = (20_000).to_bytes(4, "little") * 2
    path = tmp_path / "giant.bmp"
    path.write_bytes(content)
    with pytest.raises(BadFile, match=f"over the limit of {MAX_PIXELS}"):
        check(str(path))


def test_a_name_is_printed_in_one_line_and_without_escapes():
    assert printable("a\x1b[31m\n\udcff.png") == "a\\x1b[31m\\n\\xff.png"

"""Odd but good images give the right pixels, the same through DALI and through PIL."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from fastssl.augment.linear_policy import Policy, draw
from fastssl.data import dali_graph
from fastssl.data.dali_reader import DaliReader
from fastssl.data.decode import decode
from fastssl.data.headers import MAX_PIXELS, BadFile, check, has_sound_scan
from fastssl.data.torch_reader import TorchReader

AS_IS = Policy(scale=(1.0, 1.0), flip=0.0, jitter=0.0, gray=0.0, blur=0.0)


def scene(width: int = 40, height: int = 24) -> Image.Image:
    row, column = np.mgrid[:height, :width]
    pixels = np.stack([6 * column, 10 * row, 255 - 3 * column - 5 * row], axis=2)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def stored(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


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
    ours, theirs = (views(reader, [str(path)], [header]) for reader in readers(24))
    assert levels_apart(ours, theirs).mean() < 0.5


def readers(side: int):
    dali = DaliReader(AS_IS, side=side, num_views=1, workers=1, device_id=None)
    return dali, TorchReader(AS_IS, side=side, workers=1)


def draw_as_is(headers, settings=AS_IS):
    width, height = (np.array([getattr(h, k) for h in headers]) for k in ("width", "height"))
    key = {"seed": 0, "epoch": 0, "index_N": np.arange(len(headers)), "view": 0}
    return draw(settings, width_N=width, height_N=height, **key)


def views(reader, paths, headers, settings=AS_IS):
    made = reader.views(paths, headers, [draw_as_is(headers, settings)])
    reader.close()
    return made[0] if isinstance(made, tuple) else made


def levels_apart(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Absolute difference of normalised images, in levels of 0..255."""
    return (x - y).abs() * 255 * torch.tensor(AS_IS.std)[:, None, None]


@pytest.mark.parametrize("side", [32, 96])
def test_the_whole_policy_agrees_between_backends(tmp_path, side):
    """Decoding is equal; rounding in the resize gives one level, which contrast may double."""
    paths = []
    for i in range(24):
        paths.append(str(tmp_path / f"{i}.jpg"))
        noise = np.random.default_rng(i).integers(0, 255, (9, 12, 3), dtype=np.uint8)
        photo = Image.fromarray(noise).resize((150 + 5 * i, 110), Image.Resampling.BICUBIC)
        photo.save(paths[-1], quality=90)
    headers = [check(path) for path in paths]
    settings = Policy()
    dali = DaliReader(settings, side=side, num_views=1, workers=2, device_id=None)
    plain = TorchReader(settings, side=side, workers=2)
    ours, theirs = (views(reader, paths, headers, settings) for reader in (dali, plain))
    apart = levels_apart(ours, theirs)
    assert apart.mean() < 0.4 and apart.max() < 10


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
    paths = [str(whole), str(broken)]
    headers = [check(path) for path in paths]
    for reader in readers(32):
        failures = views(reader, paths, headers)
        assert list(failures) == [1] and "cannot be decoded" in failures[1]


def without_quantisation(content: bytes) -> bytes:
    begin = content.index(b"\xff\xdb")
    end = begin + 2 + int.from_bytes(content[begin + 2 : begin + 4], "big")
    return content[:begin] + content[end:]


def test_a_file_that_breaks_the_pipeline_is_found_and_the_pipeline_rebuilt(tmp_path):
    paths = [str(tmp_path / f"{i}.jpg") for i in range(3)]
    for path in paths:
        (tmp_path / path).write_bytes(stored(scene(), "JPEG"))
    (tmp_path / paths[1]).write_bytes(without_quantisation(stored(scene(), "JPEG")))
    headers = [check(path) for path in paths]
    assert headers[1].plain
    dali = readers(24)[0]
    table = [draw_as_is(headers)]
    for _ in range(2):
        failures = dali.views(paths, headers, table)
        assert list(failures) == [1] and "cannot be decoded" in failures[1]
        good = [paths[0], paths[2], paths[0]]
        (made,) = dali.views(good, [headers[0]] * 3, table)
        assert torch.equal(made[0], made[2])
    dali.close()


def test_a_file_that_only_dali_refuses_is_decoded_by_pil(tmp_path, monkeypatch):
    paths = [str(tmp_path / f"{i}.jpg") for i in range(2)]
    for i, path in enumerate(paths):
        (tmp_path / path).write_bytes(stored(scene(40 + i), "JPEG"))
    headers = [check(path) for path in paths]
    dali, refused = readers(24)[0], (tmp_path / paths[1]).read_bytes()
    run = dali._run

    class Picky:
        def feed_input(self, _name, contents):
            self.contents = contents

        def run(self):
            if any(content.tobytes() == refused for content in self.contents):
                raise RuntimeError("not for me")

    def picky_run(encoded, tables):
        picky = Picky()
        picky.feed_input("encoded", encoded)
        picky.run()
        return run(encoded, tables)

    expected = run_once(dali, paths, headers)
    monkeypatch.setattr(dali, "_run", picky_run)
    monkeypatch.setattr(dali_graph, "build_decoder", lambda device_id: Picky())
    assert torch.equal(run_once(dali, paths, headers), expected)
    dali.close()


def run_once(reader, paths, headers):
    (made,) = reader.views(paths, headers, [draw_as_is(headers)])
    return made


def test_a_trailer_after_the_picture_does_no_harm(tmp_path):
    path = tmp_path / "motion.jpg"
    path.write_bytes(stored(scene(), "JPEG") + bytes(200_000))
    assert check(str(path)).width == 40
    for reader in readers(24):
        assert views(reader, [str(path)], [check(str(path))]).isfinite().all()


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

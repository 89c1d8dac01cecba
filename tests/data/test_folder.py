"""A folder of images: what decodes is used, the rest is named; both backends agree."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
import torch
from PIL import Image

from fastssl.data import scan as scanning
from fastssl.data.pil_decoder import pixels
from fastssl.data.roster import TooManyBadFiles
from fastssl.data.scan import scan
from fastssl.data.sources import open_source
from fastssl.data.store import fetch
from fastssl.kernels.augment.op import augment

CPU = torch.device("cpu")
BAD = {
    "dog/zero.jpg", "dog/cut.jpg", "dog/text.jpg", "dog/header.png", "dog/cut.png", "dog/cut.webp",
    "dog/link.jpg", "dog/folder.jpg", "dog/bomb.png", "dog/cut.bmp", "dog/riff.webp", "dog/no.bmp",
}  # fmt: skip


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for i in range(16):
            image = picture(i, (20 + 7 * i, 90 - 4 * i))
            image.save(root / name / f"{i}.{('jpg', 'png', 'webp', 'bmp')[i % 4]}")
    odd = root / "cat"
    picture(50, (40, 30)).convert("L").save(odd / "grey.JPG")
    picture(51, (40, 30)).convert("CMYK").save(odd / "cmyk.jpeg")
    picture(52, (40, 30)).convert("RGBA").save(odd / "alpha.png")
    picture(53, (40, 30)).convert("P").save(odd / "palette.png")
    picture(54, (1, 1)).save(odd / "pixel.png")
    picture(55, (3, 700)).save(odd / "thin.jpg")
    deep = np.linspace(0, 65535, 900).reshape(30, 30).astype(np.uint16)
    Image.fromarray(deep).save(odd / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(56, (40, 30)).save(odd / "turned.jpg", exif=exif)
    picture(57, (40, 30)).save(odd / "really-a-png.jpg", "PNG")
    spoil(root)
    return root


def spoil(root) -> None:
    dog = root / "dog"
    (dog / "zero.jpg").write_bytes(b"")
    (dog / "text.jpg").write_text("not an image")
    noise = Image.fromarray(np.random.default_rng(9).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    for kind in ("jpg", "png", "webp", "bmp"):
        noise.save(dog / f"whole.{kind}")
        content = (dog / f"whole.{kind}").read_bytes()
        (dog / f"cut.{kind}").write_bytes(content[: len(content) // 2])
    (dog / "header.png").write_bytes((dog / "whole.png").read_bytes()[:12])
    (dog / "riff.webp").write_bytes(b"RIFF\0\0\0\0WEBPnope" + bytes(40))
    (dog / "no.bmp").write_bytes(b"BM" + bytes(60))
    bomb = bytearray((dog / "whole.png").read_bytes())
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    (dog / "bomb.png").write_bytes(bomb)
    (dog / "link.jpg").symlink_to(dog / "nowhere.jpg")
    (dog / "folder.jpg").mkdir()


def source_of(root, backend="torchvision", **options):
    options = {"image_size": 32, "max_bad": 0.5, "workers": 2, "seed": 1, **options}
    return open_source(str(root), backend=backend, **options)


def take(source, count, *, start=0, batch_size=8):
    batches = source.batches(batch_size=batch_size, seed=1, start_step=start, device=CPU)
    try:
        return [next(batches) for _ in range(count)]
    finally:
        batches.close()


def assert_same(left, right) -> None:
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a.index_N, b.index_N)
        assert all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))


@pytest.mark.parametrize("backend", ["dali", "torchvision"])
def test_exactly_the_unusable_files_are_skipped_and_named(corpus, backend):
    source = source_of(corpus, backend)
    per_epoch = source.steps_per_epoch(8)
    batches = take(source, 2 * per_epoch)
    for batch in batches:
        for view in batch.views:
            assert view.shape == (8, 3, 32, 32) and torch.isfinite(view).all()
    report = source.report()
    assert {entry["path"] for entry in report["skipped"]} == BAD
    assert all(entry["reason"] for entry in report["skipped"])


def test_both_backends_give_the_same_samples_and_nearly_the_same_pixels(corpus):
    pair = [
        take(source_of(corpus, backend, image_size=64), 4) for backend in ("dali", "torchvision")
    ]
    for ours, theirs in zip(*pair, strict=True):
        assert torch.equal(ours.index_N, theirs.index_N)
        for x, y in zip(ours.views, theirs.views, strict=True):
            levels = 255 * 0.225 * (x - y).abs()  # of 256
            assert levels.mean() < 0.5
            assert levels.flatten(1).quantile(0.99, dim=1).max() < 6


@pytest.mark.parametrize("policy", ["simclr", "swav"])
def test_decoding_regions_shows_what_decoding_the_whole_shows(corpus, policy):
    """Up to the chroma at the rim of a region; every view of multi-crop is cut from its own."""
    pair = [
        take(source_of(corpus, "dali", image_size=64, decoded=decoded, augment=policy), 4)
        for decoded in ("whole", "regions")
    ]
    for ours, theirs in zip(*pair, strict=True):
        assert torch.equal(ours.index_N, theirs.index_N)
        for x, y in zip(ours.views, theirs.views, strict=True):
            levels = 255 * 0.225 * (x - y).abs()
            assert levels.mean() < 0.5
            assert levels.flatten(1).quantile(0.99, dim=1).max() < 8


def test_the_same_files_look_different_in_the_next_epoch(corpus):
    source = source_of(corpus)
    per_epoch = source.steps_per_epoch(8)

    def box_of(epoch: int) -> dict[int, tuple[float, ...]]:
        batches = take(source, per_epoch, start=epoch * per_epoch)
        return {
            int(index): tuple(values.tolist())
            for batch in batches
            for index, values in zip(
                batch.index_N, batch.table.tables[0].values_VNP[0], strict=True
            )
        }

    first, second = box_of(0), box_of(1)
    both = first.keys() & second.keys()
    assert both and all(first[index] != second[index] for index in both)


def test_scores_are_read_from_the_middle_of_the_picture(tmp_path):
    pixels_HW3 = np.zeros((40, 100, 3), np.uint8)
    pixels_HW3[:, 30:70] = 255
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(pixels_HW3).save(tmp_path / name / f"{i}.png")
    images = next(source_of(tmp_path).labelled("train").images(9))
    white = (1 - torch.tensor((0.485, 0.456, 0.406))) / torch.tensor((0.229, 0.224, 0.225))
    assert torch.allclose(images, white[:, None, None].expand_as(images), atol=1e-5)


def test_regions_are_refused_where_they_cannot_be_had(corpus):
    with pytest.raises(ValueError, match="'regions' needs DALI"):
        source_of(corpus, "torchvision", decoded="regions")
    with pytest.raises(ValueError, match="'regions' has no place for the base views of invclr"):
        source_of(corpus, "dali", decoded="regions", augment="invclr")


def test_views_are_what_augment_makes_of_the_decoded_files(corpus):
    """No other augmentation code: PIL's pixels, the batch's own table, the operator."""
    source = source_of(corpus)
    (batch,) = take(source, 1)
    (group,), (table,) = source.policy.groups, batch.table.tables
    images = [pixels(fetch(source._store, int(index))) for index in batch.index_N]
    views = augment(images, table, size=32, settings=group.settings)
    assert all(torch.equal(x, y) for x, y in zip(batch.views, views, strict=True))
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in batch.views)


@pytest.mark.parametrize("backend", ["dali", "torchvision"])
def test_batches_do_not_depend_on_workers_or_on_where_a_run_starts(corpus, backend):
    straight = take(source_of(corpus, backend, workers=1), 7)
    assert_same(straight[3:], take(source_of(corpus, backend, workers=4), 4, start=3))


def test_a_bad_file_found_late_gives_the_batches_of_one_known_before(corpus):
    fresh = source_of(corpus)
    informed = source_of(corpus)
    take(informed, 12)
    assert_same(take(fresh, 5), take(informed, 5))


def test_headers_are_cached_and_a_damaged_cache_is_ignored(corpus, tmp_path):
    first = source_of(corpus, cache_dir=tmp_path).num_samples
    (cache,) = tmp_path.iterdir()
    assert len(cache.read_text().splitlines()) >= first
    cache.write_bytes(b"\xff{not json\n[1, 2]\n")
    assert source_of(corpus, cache_dir=tmp_path).num_samples == first


def test_too_many_bad_files_end_the_run_with_their_names(corpus):
    with pytest.raises(
        TooManyBadFiles, match=r"(?s)--max-bad-files 0.01.*bomb.png.*over the limit"
    ):
        source_of(corpus, max_bad=0.01)


def mostly_bad(root, *, good: int, text: int = 0, noise: int = 0):
    """Flat folder: pictures, files that are none, and files whose header alone is good."""
    root.mkdir()
    for i in range(good):
        picture(i, (40, 30)).save(root / f"good{i:03}.png")
    for i in range(text):
        (root / f"text{i:03}.png").write_text("not an image")
    for i in range(noise):
        content = (root / "good000.png").read_bytes()
        (root / f"noise{i:03}.png").write_bytes(content[:60] + bytes(len(content) - 60))
    return root


def test_by_default_bad_files_are_left_out_named_and_warned_of_once(tmp_path, caplog):
    root = mostly_bad(tmp_path / "photos", good=18, text=1)
    source = source_of(root, max_bad=None)
    take(source, 4, batch_size=18)
    assert [entry["path"] for entry in source.report()["skipped"]] == ["text000.png"]
    (warning,) = caplog.messages
    assert "1 of 19 files cannot be used" in warning and "text000.png" in warning


def test_few_bad_files_are_not_warned_of(tmp_path, caplog):
    source_of(mostly_bad(tmp_path / "photos", good=20, text=1), max_bad=None)
    assert not caplog.messages


def test_bad_files_found_on_the_way_do_not_end_the_run(tmp_path, caplog):
    source = source_of(mostly_bad(tmp_path / "photos", good=10, noise=190), max_bad=None)
    for batch in take(source, 25):
        assert len(set(batch.index_N.tolist())) == 8, "a stand-in that is in the batch already"
        assert all(source._store.paths[int(i)].startswith("good") for i in batch.index_N)
    assert len(source.report()["skipped"]) == 190
    assert sum("many bad files" in message for message in caplog.messages) == 1


def test_too_few_good_files_for_one_batch_are_refused_with_the_bad_ones_named(tmp_path):
    source = source_of(mostly_bad(tmp_path / "photos", good=7, text=3), max_bad=None)
    with pytest.raises(ValueError, match=r"(?s)3 of 10 files.*text000.*7 usable.*batch-size 7"):
        source.batches(batch_size=8, seed=1)


def test_a_bounded_scan_takes_unread_files_for_good_and_says_how_many(tmp_path):
    root = mostly_bad(tmp_path / "photos", good=3, text=3)
    seen = source_of(root)
    assert (seen.num_samples, seen.report()["unchecked"], seen.all_listed) == (3, 0, True)
    found = scan(root, workers=1, cache_dir=None, budget_s=-1.0)
    assert (found.unchecked, found.complete) == (0, False)


def test_a_bounded_scan_stops_reading_headers_in_time(tmp_path, monkeypatch):
    root = mostly_bad(tmp_path / "photos", good=1)
    for i in range(1500):
        os.link(root / "good000.png", root / f"{i:04}.png")
    check = scanning.check
    monkeypatch.setattr(scanning, "check", lambda path: time.sleep(0.01) or check(path))
    source = source_of(root, scan_budget_s=0.2)
    assert source.num_samples == 1501 and source.all_listed
    assert 0 < source.report()["unchecked"] < 1501


def test_folders_label_images_and_splits_are_disjoint(corpus):
    source = source_of(corpus)
    splits = [source.labelled(name) for name in ("train", "test")]
    assert all(split.names == ("cat", "dog") for split in splits)
    sizes = [len(split.target) for split in splits]
    assert sum(sizes) == source.report()["num_files"] - len(BAD)
    assert 0.05 < sizes[1] / sum(sizes) < 0.4
    images = torch.cat(list(splits[1].images(4)))
    assert images.shape == (sizes[1], 3, 32, 32)


def test_split_folders_are_recognised_and_flat_ones_have_no_labels(tmp_path):
    for place in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / "tree" / place).mkdir(parents=True)
        for i in range(3):
            picture(i, (30, 30)).save(tmp_path / "tree" / place / f"{i}.png")
    source = source_of(tmp_path / "tree")
    assert source.num_samples == 6
    assert [len(source.labelled(split).target) for split in ("train", "test")] == [6, 6]
    (tmp_path / "flat").mkdir()
    for i in range(3):
        picture(i, (30, 30)).save(tmp_path / "flat" / f"{i}.png")
    assert source_of(tmp_path / "flat").labelled("train") is None


def test_names_that_are_not_utf8_and_links_in_circles_do_no_harm(tmp_path):
    odd = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    picture(1, (30, 30)).save(tmp_path / "plain.png")
    os.link(tmp_path / "plain.png", odd)
    (tmp_path / "circle").symlink_to(tmp_path)
    source = source_of(tmp_path)
    assert source.num_samples == 2
    take(source, 2, batch_size=2)


def test_wrong_folders_are_refused_by_flag(tmp_path):
    with pytest.raises(ValueError, match=r"--data .*found no file named"):
        source_of(tmp_path)
    with pytest.raises(ValueError, match=r"--data .*no such folder"):
        source_of(tmp_path / "missing")
    picture(1, (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(ValueError, match=r"--data .*this is another file"):
        source_of(tmp_path / "one.png")
    with pytest.raises(ValueError, match="batch-size is 5; add images"):
        source_of(tmp_path).steps_per_epoch(5)


def test_a_batch_knows_the_class_of_each_of_its_samples(tmp_path):
    for number in range(12):
        folder = tmp_path / ("birds", "cats")[number % 2]
        folder.mkdir(exist_ok=True)
        pixels = np.full((20, 20, 3), 20 * number, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    source = open_source(str(tmp_path), image_size=16)
    batches = source.batches(batch_size=6, seed=0)
    batch = next(batches)
    batches.close()
    names = [source._store.paths[index] for index in batch.index_N.tolist()]
    expected = [("birds", "cats").index(name.split("/")[0]) for name in names]
    assert batch.table.class_N.tolist() == expected
    assert source.rehearsal(3).table.class_N.shape == (3,)

"""WebDataset shards: every image by its number, classes from .cls and .json, damage named."""

from __future__ import annotations

import io
import json
import os
import tarfile

import pytest
import torch

from fastssl.data import shards
from fastssl.data.shard_index import as_json, from_json, index_shard
from fastssl.data.shards import expand
from fastssl.data.sources import open_source
from tests.data.pictures import (
    assert_resumes_and_shards,
    assert_same,
    damaged,
    picture,
    stored,
    take,
)


def write_tar(path, entries) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def entries(first: int, count: int):
    """Images with classes; one damaged in its scan, one without a header, one stray text."""
    for i in range(first, first + count):
        kind = ("JPEG", "PNG")[i % 3 == 2]
        content = stored(picture(i, (30 + 3 * i, 40)), kind)
        bad = i == first + 4
        yield f"part/{i:03}.a.{kind.lower()}", damaged(content) if bad else content
        label = {"label": i % 2, "caption": "x"}
        yield (
            (f"part/{i:03}.cls", b"%d\n" % (i % 2))
            if i % 4
            else (
                f"part/{i:03}.json",
                json.dumps(label).encode(),
            )
        )
    yield f"part/{first:03}.txt", b"a caption"
    yield f"part/{first + count:03}.jpg", b"not an image"


BAD = {
    *("shard-000.tar/part/004.a.jpeg", "shard-001.tar/part/016.a.jpeg"),
    *("shard-000.tar/part/012.jpg", "shard-001.tar/part/024.jpg"),
}


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    for number in range(2):
        write_tar(root / f"shard-{number:03}.tar", entries(12 * number, 12))
    return root


def source_of(data, backend="torchvision", **options):
    options = {"image_size": 24, "workers": 2, **options}
    return open_source(str(data), backend=backend, **options)


@pytest.mark.parametrize("backend", ["dali", "torchvision"])
def test_images_come_with_their_class_and_bad_ones_are_named_and_replaced(folder, backend):
    source = source_of(folder, backend)
    assert (source.kind, source.name, source.num_samples) == ("shards", "set", 24)
    for batch in take(source, 6):
        assert all(view.shape == (8, 3, 24, 24) and view.isfinite().all() for view in batch.views)
        assert len(set(batch.index_N.tolist())) == 8
        assert not {4, 16} & set(batch.index_N.tolist())
    assert {entry["path"] for entry in source.report()["skipped"]} == BAD
    train, test = (source.labelled(name) for name in ("train", "test"))
    assert train.names == ("0", "1") and len(train.target) + len(test.target) == 22
    assert sum(int(split.target.sum()) for split in (train, test)) == 12
    assert next(iter(train.images(5))).shape == (5, 3, 24, 24)


def test_a_shard_is_no_other_data_than_a_folder_of_its_files(folder, tmp_path):
    """The same images in the same order give the same batches, late bad ones included."""
    files = tmp_path / "files"
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            tar.extractall(files / path.name, filter="data")
    assert_same(take(source_of(folder), 4), take(source_of(files), 4))


def test_resume_and_ranks(folder):
    assert_resumes_and_shards(source_of(folder))


def test_patterns_name_shards_as_a_shell_would(folder):
    whole = take(source_of(folder), 1)
    for pattern in ("shard-{000..001}.tar", "shard-00{0,1}.tar", "shard-*.tar"):
        assert_same(whole, take(source_of(folder / pattern), 1))
    assert source_of(folder / "shard-001.tar").num_samples == 12
    assert expand("a{08..10}-{x,y}") == ["a08-x", "a08-y", "a09-x", "a09-y", "a10-x", "a10-y"]
    with pytest.raises(ValueError, match=r"4 shards are named.*shard-002.tar and 1 more"):
        source_of(folder / "shard-{000..003}.tar")


def test_split_folders_are_splits_and_names_are_classes(tmp_path):
    for split, count in (("train", 6), ("val", 4)):
        (tmp_path / split).mkdir()
        pairs = [(f"{i}", stored(picture(i))) for i in range(count)]
        files = [(f"{key}.jpg", content) for key, content in pairs]
        files += [(f"{key}.cls", (b"cat", b"dog")[int(key) % 2]) for key, _ in pairs]
        write_tar(tmp_path / split / "0.tar", files)
    source = source_of(tmp_path)
    assert source.num_samples == 6
    train, test = (source.labelled(name) for name in ("train", "test"))
    assert (len(train.target), len(test.target), test.names) == (6, 4, ("cat", "dog"))


def test_the_index_is_kept_and_made_anew_only_for_a_changed_shard(folder, tmp_path, monkeypatch):
    cache, seen = tmp_path / "run", []
    index = shards.index_shard
    monkeypatch.setattr(shards, "index_shard", lambda path: seen.append(path) or index(path))
    first = take(source_of(folder, cache_dir=cache), 3)
    assert len(seen) == 2
    assert_same(first, take(source_of(folder, cache_dir=cache), 3))
    assert len(seen) == 2
    changed = folder / "shard-001.tar"
    write_tar(changed, [("new.jpg", stored(picture(1)))])
    os.utime(changed, ns=(1, 1))
    assert source_of(folder, cache_dir=cache).num_samples == 13
    assert seen[2:] == [str(changed)]
    (kept,) = cache.glob("shard-index.jsonl")
    kept.write_text('[1, 2]\n{"no": 1}\nnonsense\n["a", 1, 2, [["x"]], []]\n')
    assert source_of(folder, cache_dir=cache).num_samples == 13


def test_an_index_survives_its_file(folder):
    shard = index_shard(str(folder / "shard-000.tar"))
    assert from_json(as_json(shard)) == shard and len(shard.members) == 12


def test_a_resumed_run_remembers_what_did_not_decode(folder, tmp_path):
    cache = tmp_path / "run"
    straight = take(source_of(folder, cache_dir=cache), 6)
    resumed = source_of(folder, cache_dir=cache)
    assert {entry["path"] for entry in resumed.report()["skipped"]} == BAD
    assert_same(straight[4:], take(resumed, 2, start=4))


def test_damaged_shards_are_named_and_the_rest_of_them_is_used(folder):
    whole = folder / "shard-000.tar"
    content = whole.read_bytes()
    (folder / "shard-002.tar").write_bytes(content[: len(content) // 2])
    (folder / "shard-003.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    (folder / "shard-004.tar").write_bytes(b"not a tar file" * 200)
    source = source_of(folder)
    assert 26 < source.num_samples < 34
    reasons = {entry["path"]: entry["reason"] for entry in source.report()["skipped"]}
    assert "compressed" in reasons["shard-003.tar"] and "damaged" in reasons["shard-004.tar"]
    assert any("damaged after" in reason or "ends before" in reason for path, reason in
               reasons.items() if path.startswith("shard-002.tar"))  # fmt: skip
    for batch in take(source, 3):
        assert torch.isfinite(batch.views[0]).all()


def test_a_shard_that_goes_away_while_training_is_a_bad_file(folder):
    source = source_of(folder)
    (folder / "shard-001.tar").write_bytes(b"")
    for batch in take(source, 3):
        assert (batch.index_N < 12).all()
    assert any("shorter" in entry["reason"] for entry in source.report()["skipped"])


def test_shards_without_images_are_refused(tmp_path):
    write_tar(tmp_path / "0.tar", [("a.txt", b"text")])
    with pytest.raises(ValueError, match=r"--data .*expected tar files with images.*in 1 shards"):
        source_of(tmp_path)


def test_a_bounded_look_takes_a_few_shards(folder):
    source = source_of(folder, scan_budget_s=-1.0, workers=1)
    assert source.num_samples == 12 and not source.all_listed


def labelled_shard(path, labels) -> None:
    image = stored(picture(0))
    pairs = [(f"{i}.jpg", f"{i}.cls", label) for i, label in enumerate(labels)]
    write_tar(path, [e for jpg, cls, label in pairs for e in ((jpg, image), (cls, label.encode()))])


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (("10", "9", "-2"), ("-2", "9", "10")),
        (("1", "\u00b2"), ("1", "\u00b2")),
        (("2", "1" * 5_000), ("1" * 5_000, "2")),
        (("2", "1", "01"), ("01", "1", "2")),
    ],
)
def test_labels_are_numbers_where_all_of_them_are(tmp_path, labels, names):
    labelled_shard(tmp_path / "0.tar", labels)
    assert source_of(tmp_path).labelled("train").names == names


def test_nonsense_in_a_shard_costs_that_shard_alone(folder):
    write_tar(folder / "deep.tar", [("a.jpg", stored(picture(0))), ("a.json", b"[" * 400_000)])
    with tarfile.open(folder / "pax.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.jpg")
        info.pax_headers = {"GNU.sparse.map": "abc"}
        tar.addfile(info)
    source = source_of(folder)
    assert source.num_samples == 25  # the image beside the deep JSON has no class
    reasons = {entry["path"]: entry["reason"] for entry in source.report()["skipped"]}
    assert "damaged after 0 images" in reasons["pax.tar"] and "deep.tar" not in reasons


def test_braces_around_other_digits_are_no_range():
    assert expand("x{\u00b2..3}.tar") == ["x\u00b2..3.tar"]

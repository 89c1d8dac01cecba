"""What the layout of a folder means, what a resumed run remembers, which backend answers."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fastssl.data import encoded
from fastssl.data.folder_labels import find_split, labelled_indices
from fastssl.data.roster import TooManyBadFiles
from fastssl.data.sources import open_source

CPU = torch.device("cpu")


def split_of(*paths):
    split = find_split(paths)
    return [paths[i] for i in split.train], [paths[i] for i in split.test], split.classes


def test_split_folders_are_splits_only_among_themselves():
    assert split_of("Train/a/1", "Train/b/2", "val/a/3") == (
        ["Train/a/1", "Train/b/2"],
        ["val/a/3"],
        ("a", "b"),
    )
    vehicles = ("car/1", "plane/2", "train/3")
    assert split_of(*vehicles) == (list(vehicles), [], ("car", "plane", "train"))
    assert split_of("preview", "train/1", "val/2")[:2] == (["train/1"], ["val/2"])


def test_loose_images_are_trained_on_and_have_no_class():
    paths = ("cat/1", "dog/2", "dog/deep/er/3", "loose")
    split = find_split(paths)
    assert len(split.train) == 4 and split.label.tolist() == [0, 1, 1, -1]
    used = [labelled_indices(split, name, limit=None) for name in ("train", "test")]
    assert sorted(np.concatenate(used).tolist()) == [0, 1, 2]


def test_readout_splits_are_keyed_disjoint_and_a_fifth():
    paths = tuple(f"{'ab'[i % 2]}/{i:04}" for i in range(1000))
    split = find_split(paths)
    train, test = (labelled_indices(split, n, limit=None) for n in ("train", "test"))
    assert not set(train) & set(test) and len(train) + len(test) == 1000
    assert np.array_equal(labelled_indices(split, "test", limit=10), test[:10])
    assert 60 < sum(index % 2 for index in test) < 140, "drawn, not the first ones"


@pytest.mark.parametrize(("num", "held_out"), [(20, 4), (7, 1), (13, 3), (1000, 200)])
def test_the_held_out_split_is_an_exact_fifth(num, held_out):
    split = find_split((*(f"{'ab'[i % 2]}/{i:04}" for i in range(num)), "loose"))
    assert len(labelled_indices(split, "test", limit=None)) == held_out


@pytest.fixture
def photos(tmp_path):
    """24 noisy JPEGs; three have sound headers and damaged pixels."""
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(24):
        pixels = np.random.default_rng(i).integers(0, 255, (50 + i, 60, 3), dtype=np.uint8)
        path = root / f"{i:02}.jpg"
        Image.fromarray(pixels).save(path)
        if i % 8 == 5:
            content = bytearray(path.read_bytes())
            middle = len(content) // 2
            content[middle : middle + 2] = b"\xff\x97"
            path.write_bytes(content)
    return root


DAMAGED = {"05.jpg", "13.jpg", "21.jpg"}


def take(root, count, *, backend="torchvision", batch_size=8, start=0, **options):
    options = {"image_size": 32, "max_bad": 0.3, "seed": 0, "workers": 2, **options}
    source = open_source(str(root), backend=backend, **options)
    batches = source.batches(batch_size=batch_size, seed=0, start_step=start, device=CPU)
    taken = [next(batches) for _ in range(count)]
    batches.close()
    return source, taken


def skipped(source):
    return {entry["path"] for entry in source.report()["skipped"]}


def test_both_backends_find_the_same_damage_and_refill_alike(photos):
    (dali, ours), (plain, theirs) = (take(photos, 6, backend=b) for b in ("dali", "torchvision"))
    assert skipped(dali) == skipped(plain) == DAMAGED
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.index_N, b.index_N)
        assert not {int(i) for i in a.index_N} & {5, 13, 21}
        assert len(set(a.index_N.tolist())) == 8  # a stand-in is not in the batch already
        assert torch.equal(a.table.tables[0].values_VNP, b.table.tables[0].values_VNP)


@pytest.mark.parametrize("backend", ["dali", "torchvision"])
def test_a_file_that_stands_in_twice_is_augmented_anew(photos, backend):
    _, taken = take(photos, 3, backend=backend, batch_size=24)
    for batch in taken:
        index = batch.index_N.tolist()
        twice = [i for i in index if index.count(i) > 1]
        assert len(set(index)) == 21 and twice
        a, b = (slot for slot, i in enumerate(index) if i == twice[0])
        assert not torch.equal(batch.views[0][a], batch.views[0][b])


def test_a_resumed_run_still_reports_what_an_earlier_start_found(photos, tmp_path):
    cache = tmp_path / "run"
    _, straight = take(photos, 6, cache_dir=cache)
    resumed, rest = take(photos, 1, start=5, cache_dir=cache)
    assert skipped(resumed) == DAMAGED
    assert torch.equal(rest[0].views[1], straight[5].views[1])
    notes = cache / "undecodable.jsonl"
    assert len(notes.read_text().splitlines()) == 3
    notes.write_text("[1]\nnonsense\n" + json.dumps(["05.jpg", 1, 1, "stale"]) + "\n")
    other, again = take(photos, 6, cache_dir=cache)
    assert skipped(other) == DAMAGED
    assert torch.equal(again[5].views[1], straight[5].views[1])


def test_too_much_damage_found_on_the_way_ends_the_run(photos):
    with pytest.raises(TooManyBadFiles, match=r"3 of 24|2 of 24"):
        take(photos, 6, max_bad=0.05)


def test_a_folder_that_cannot_be_opened_is_named(photos, monkeypatch):
    (photos / "closed").mkdir()
    scandir = os.scandir

    def guarded(path):
        if os.path.basename(path) == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    source = open_source(str(photos), image_size=32, max_bad=0.3, backend="torchvision")
    assert source.report()["skipped"] == [
        {"path": "closed", "reason": "the folder cannot be opened: Permission denied"}
    ]


def test_without_dali_the_fallback_answers_and_says_so_once(photos, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    encoded._say_no_dali.cache_clear()
    with caplog.at_level(logging.WARNING, logger="fastssl"):
        backends = [open_source(str(photos), image_size=32).backend for _ in range(2)]
    assert backends == ["torchvision"] * 2
    assert len(caplog.records) == 1 and "nvidia-dali-cuda130" in caplog.text


@pytest.mark.parametrize(
    "program",
    [
        "import fastssl.data.sources, fastssl.data.folder, sys; assert 'nvidia.dali' not in "
        "sys.modules",
        "import torch, nvidia.dali; from fastssl.data.dali_graph import build; "
        "build(batch_size=1, threads=1, device_id=None); print(torch.ones(3).sum())",
        "import nvidia.dali, torch; from fastssl.data.dali_graph import build; "
        "build(batch_size=1, threads=1, device_id=None); print(torch.ones(3).sum())",
    ],
    ids=["not imported early", "torch first", "DALI first"],
)
def test_dali_is_imported_late_and_in_either_order(program):
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, b"")

"""torchvision's sets by name: in arrays, in files, or one by one; never downloaded."""

from __future__ import annotations

import logging
import struct

import numpy as np
import pytest
import torchvision
from PIL import Image

from fastssl.data.sources import open_source
from tests.data.pictures import (
    assert_resumes_and_shards,
    assert_same,
    damaged,
    picture,
    stored,
    take,
)


def source_of(name: str, root, **options):
    return open_source(f"torchvision:{name}:{root}", image_size=16, **options)


def write_idx(path, values: np.ndarray) -> None:
    head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(head + values.tobytes())


@pytest.fixture
def mnist(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for name, count in (("train", 30), ("t10k", 10)):
        write_idx(
            raw / f"{name}-images-idx3-ubyte", draw.integers(0, 256, (count, 28, 28), np.uint8)
        )
        write_idx(raw / f"{name}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    return tmp_path


@pytest.fixture
def eurosat(tmp_path):
    for place in ("Forest", "River"):
        folder = tmp_path / "eurosat" / "2750" / place
        folder.mkdir(parents=True)
        for i in range(12):
            content = stored(picture(i))
            (folder / f"{i:02}.jpg").write_bytes(damaged(content) if i == 5 else content)
    (folder / "text.jpg").write_text("not an image")
    return tmp_path


def test_a_set_of_arrays_is_one_in_memory_with_both_splits(mnist):
    source = source_of("mnist", mnist)
    assert (source.kind, source.name, source.num_samples) == ("torchvision", "mnist", 30)
    assert_resumes_and_shards(source)
    train, test = (source.labelled(name) for name in ("train", "test"))
    assert (len(train.target), len(test.target), len(train.names)) == (30, 10, 10)
    assert train.names[3] == "3 - three"


@pytest.mark.parametrize("backend", ["dali", "torchvision"])
def test_a_set_of_files_is_read_like_a_folder(eurosat, backend, tmp_path):
    source = source_of("EuroSAT", eurosat, backend=backend, cache_dir=tmp_path / "run")
    assert source.num_samples == 24
    for batch in take(source, 6):
        assert len(set(batch.index_N.tolist())) == 8
    skipped = {entry["path"] for entry in source.report()["skipped"]}
    assert skipped == {
        f"eurosat/2750/{name}.jpg" for name in ("Forest/05", "River/05", "River/text")
    }
    assert source.labelled("train").names == ("Forest", "River")
    assert_resumes_and_shards(source)
    assert (tmp_path / "run" / "image-headers.jsonl").is_file()


class Asked:
    """A data set that hides its files, as those in a database do; it cannot give its fifth."""

    def __init__(self, root: str, train: bool = True) -> None:
        self.targets = [i % 2 for i in range(20 if train else 6)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if index == 5:
            raise OSError("no such record")
        image = picture(index)
        return (image.convert("L") if index % 2 else image), index % 2


def test_any_other_set_is_asked_image_by_image(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "SBU", Asked)
    source = source_of("SBU", tmp_path)
    (first,) = take(source, 1)
    assert first.views[0].shape == (8, 3, 16, 16)
    batches = take(source, 4)
    assert not any(5 in batch.index_N for batch in batches)
    (skipped,) = source.report()["skipped"]
    assert skipped["path"] == "image 5" and "no such record" in skipped["reason"]
    assert_same(batches[2:], take(source_of("SBU", tmp_path), 2, start=2))
    assert source.num_samples == 20
    sizes = [len(source.labelled(split).target) for split in ("train", "test")]
    assert sizes == [19, 5]


def test_wrong_names_and_folders_are_refused(tmp_path):
    for data, message in {
        "torchvision:CIFAR10": "expected torchvision:NAME:FOLDER",
        f"torchvision:CIFAR10:{tmp_path}/no": "no such folder",
        f"torchvision:CIFAR11:{tmp_path}": "no image data set 'CIFAR11'.*did you mean CIFAR10",
        f"torchvision:Kinetics:{tmp_path}": "needs nothing but a folder",
        f"torchvision:CIFAR10:{tmp_path}": "finds nothing to use below.*never downloads",
    }.items():
        with pytest.raises(ValueError, match=rf"--data .*{message}"):
            open_source(data, image_size=16)


def test_caltech_has_classes(tmp_path):
    for place in ("001.ak47", "002.bat"):
        folder = tmp_path / "caltech256" / "256_ObjectCategories" / place
        folder.mkdir(parents=True)
        for i in range(1, 11):
            (folder / f"{place[:3]}_{i:04}.jpg").write_bytes(stored(picture(i)))
    source = source_of("Caltech256", tmp_path)
    sizes = [len(source.labelled(split).target) for split in ("train", "test")]
    assert sizes == [16, 4] and source.labelled("test").names == ("001.ak47", "002.bat")


def test_a_damaged_test_split_is_said(tmp_path, monkeypatch, caplog):
    class Damaged(Asked):
        def __init__(self, root: str, split: str = "train") -> None:
            if split == "test":
                raise RuntimeError("Dataset not found or corrupted")
            if split != "train":
                raise ValueError(f"Unknown value '{split}' for argument split")
            super().__init__(root)

    monkeypatch.setattr(torchvision.datasets, "SBU", Damaged)
    monkeypatch.setattr(logging.getLogger("fastssl"), "propagate", True)
    source = source_of("SBU", tmp_path)
    assert "the test split of torchvision.datasets.SBU cannot be used (Dataset not found" in (
        caplog.text
    )
    assert "a fifth" in caplog.text and len(source.labelled("test").target) == 4


def test_labels_that_are_no_classes_are_refused(tmp_path, monkeypatch):
    class Vast(Asked):
        def __init__(self, root: str, train: bool = True) -> None:
            super().__init__(root, train)
            self.targets = [10**12 * label for label in self.targets]

    monkeypatch.setattr(torchvision.datasets, "SBU", Vast)
    with pytest.raises(ValueError, match=r"--data torchvision:SBU.*labels: .*below 1048576"):
        source_of("SBU", tmp_path)

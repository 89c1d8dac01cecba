"""Images in memory: every layout is the same data; labels, splits and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from fastssl.augment.policy import IMAGENET
from fastssl.augment.presets import preset
from fastssl.data import arrays
from fastssl.data.arrays import array_source
from fastssl.data.sources import open_source
from tests.data.pictures import assert_resumes_and_shards, assert_same, take

M, S = 40, 16


def images(count: int = M, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, S, S, 3), dtype=np.uint8)


LABELS = np.arange(M) % 3


@pytest.fixture
def files(tmp_path):
    arrays = {"images": images(), "labels": LABELS}
    arrays |= {"test_images": images(9, 1), "test_labels": np.arange(9) % 3}
    np.savez(tmp_path / "set.npz", **arrays)
    save_file(arrays, tmp_path / "set.safetensors")
    np.save(tmp_path / "set.npy", images())
    return tmp_path


def test_every_layout_and_file_gives_the_same_batches(files):
    nchw = np.ascontiguousarray(images().transpose(0, 3, 1, 2))
    sources = [
        array_source(images()),
        array_source(torch.from_numpy(nchw)),
        *(open_source(str(files / f"set.{kind}"), image_size=S) for kind in
          ("npz", "safetensors", "npy")),
    ]  # fmt: skip
    first, *others = [take(source, 7) for source in sources]
    for batch in first:
        assert all(view.shape == (8, 3, S, S) for view in batch.views)
    for other in others:
        assert_same(first, other)


def test_views_show_the_images_that_the_index_names():
    """The whole image, unchanged: what comes out is what is stored there."""
    plain = preset("simclr", image_size=S).without_normalisation()
    source = array_source(images(), policy=plain)
    shown = source.shown(4, seed=0)
    for image, stored in zip(shown.images, images(), strict=False):
        assert torch.equal(image, torch.from_numpy(stored).permute(2, 0, 1).float() / 255)
    labelled = array_source(images(), np.arange(M) % 2, policy=plain).labelled("test")
    x = labelled.render(np.arange(len(labelled.target)))
    seen = {tuple((255 * image).round().byte().permute(1, 2, 0).flatten().tolist()) for image in x}
    assert seen <= {tuple(image.flatten().tolist()) for image in images()}


def test_resume_and_ranks():
    assert_resumes_and_shards(array_source(images()))


def test_grey_is_repeated():
    grey = images()[..., 0]
    for form in (grey, grey[..., None], grey[:, None]):
        (batch,) = take(array_source(form), 1)
        same = np.repeat(grey[..., None], 3, axis=3)
        assert_same([batch], take(array_source(same), 1))


def test_splits_and_classes(files):
    source = open_source(str(files / "set.npz"), image_size=S)
    train, test = (source.labelled(name) for name in ("train", "test"))
    assert (len(train.target), len(test.target), train.names) == (M, 9, ("0", "1", "2"))
    x = test.render(np.arange(9)).double()
    assert x.shape == (9, 3, S, S)
    mean, std = (torch.tensor(IMAGENET[key])[:, None, None] for key in ("mean", "std"))
    shown = (255 * (x * std + mean)).round().byte().permute(0, 2, 3, 1).numpy()
    position = {image.tobytes(): i for i, image in enumerate(images(9, 1))}
    assert [position[image.tobytes()] % 3 for image in shown] == test.target.tolist()
    held_out = array_source(images(), LABELS, classes=("a", "b", "c"))
    sizes = [len(held_out.labelled(name).target) for name in ("train", "test")]
    assert sizes == [32, 8] and held_out.labelled("test").names == ("a", "b", "c")
    partly = np.where(np.arange(M) < 20, -1, LABELS)
    sizes = [len(array_source(images(), partly).labelled(n).target) for n in ("train", "test")]
    assert sum(sizes) == 20
    assert array_source(images()).labelled("train") is None
    assert array_source(images(), np.zeros(M, int)).task is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((images() / 255).astype(np.float32),), r"images: expected uint8.*received float32.*255"),
        ((images()[0, 0],), r"images: expected shape .*received \(16, 3\)"),
        ((images()[..., :2],), r"images: expected shape .*received \(40, 16, 16, 2\)"),
        ((images()[:0],), r"images: expected shape"),
        (([1, 2],), "images: expected a numpy array or tensor"),
        ((images(), LABELS[:-1]), r"labels: expected 40 integers .*received shape \(39,\)"),
        ((images(), LABELS / 2), "labels: .*received shape .*float64"),
        ((images(), LABELS - 2), "labels: expected 40 integers of at least -1"),
        ((images(), LABELS * 2**34), r"labels: .*below 1048576, received 34359738368; np\.unique"),
        ((images(), LABELS.astype("u8") << 62), "labels: .*received 9223372036854775808;"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        array_source(*arguments)


def test_test_arrays_come_in_pairs_and_names_for_every_class():
    with pytest.raises(ValueError, match="test_images, test_labels: expected both or neither"):
        array_source(images(), LABELS, test_images=images())
    with pytest.raises(ValueError, match="labels: expected labels beside test_labels"):
        array_source(images(), test_images=images(), test_labels=LABELS)
    with pytest.raises(ValueError, match="classes: expected a name for each of the labels 0 to 2"):
        array_source(images(), LABELS, classes=("a", "b"))
    with pytest.raises(ValueError, match="batch-size is 41"):
        array_source(images()).steps_per_epoch(41)


def test_bad_files_are_refused_by_name_and_nothing_is_unpickled(files):
    def refused(name: str, message: str) -> None:
        with pytest.raises(ValueError, match=rf"(?s)--data .*{name}.*{message}"):
            open_source(str(files / name), image_size=S)

    np.savez(files / "keys.npz", x=images())
    refused("keys.npz", "expected the keys images, .*received x")
    np.save(files / "objects.npy", np.array([{}, {}], dtype=object))
    refused("objects.npy", "pickle|[Oo]bject")
    save_torch({"images": torch.zeros(4, S, S, 3).byte(), "labels": torch.zeros(4).bfloat16()},
               files / "brain.safetensors")  # fmt: skip
    refused(
        "brain.safetensors", r"labels: expected 4 integers.*received shape \(4,\), dtype bfloat16"
    )
    for name in ("set.npz", "set.safetensors", "set.npy"):
        (files / name).write_bytes((files / name).read_bytes()[:100])
        refused(name, "")
    refused("missing.npz", "no such file")


def test_a_file_that_would_unpack_to_more_than_memory_is_refused_unread(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "bomb.npz", images=np.zeros((1000, S, S, 3), np.uint8))
    assert len(open_source(str(tmp_path / "bomb.npz"), image_size=S)._train) == 1000
    monkeypatch.setattr(arrays, "_free_memory", lambda: 700_000)
    with pytest.raises(ValueError, match=r"bomb\.npz: expected .* 700,000 bytes .* 768,128 bytes"):
        open_source(str(tmp_path / "bomb.npz"), image_size=S)

"""Bugs in sources of images."""

from __future__ import annotations

from tests.wrong.mutant import Mutant


def _data(name: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    named = tuple(f"tests/data/test_{test}.py" for test in tests)
    return Mutant(f"data-{name}", f"fastssl/data/{file}.py", old, new, named)


MUTANTS = (
    _data(
        "shard-offset-of-the-next", "shards", "file.seek(member.offset)", "file.seek(0)", "shards"
    ),
    _data(
        "shard-index-is-stale",
        "shards",
        "fresh = known is not None and (",
        "fresh = True or (",
        "shards",
    ),
    _data(
        "shard-labels-by-first-letter",
        "shard_index",
        "last.partition('.')[0]",
        "last[:1]",
        "shards",
    ),
    _data(
        "shard-cut-member-is-taken",
        "shards",
        "if len(content) < member.length:",
        "if False:",
        "shards",
    ),
    _data(
        "array-ranks-share-samples", "arrays", "index_N = part(index_N, shard)", "pass", "arrays"
    ),
    _data(
        "array-test-labels-shifted",
        "arrays",
        "rows = chosen - (self.num_samples if of_test else 0)",
        "rows = chosen - (self.num_samples - 1 if of_test else 0)",
        "arrays",
    ),
    _data("named-trains-on-the-test-split", "named", "part_M == 0", "part_M >= 0", "named"),
    _data(
        "views-of-another-epoch",
        "maker",
        "epoch=epoch,\n            step=step,",
        "epoch=0,\n            step=step,",
        "folder_layout",
        "folder",
    ),
    _data(
        "a-stand-in-has-its-own-parameters",
        "maker",
        "index_N=wanted_N,",
        "index_N=index_N,",
        "folder_layout",
    ),
    _data(
        "regions-begin-elsewhere",
        "rendering",
        "moved_NP[:, :2] -=",
        "moved_NP[:, :2] += 0 *",
        "folder",
    ),
    _data(
        "clean-images-are-not-central",
        "rendering",
        "(width - edge) / 2, (height - edge) / 2",
        "0, 0",
        "folder",
        "arrays",
    ),
)

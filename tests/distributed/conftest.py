"""Worlds of one, two and four ranks, started once for the room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.distributed.world import World


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from started(1, tmp_path_factory)


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from started(2, tmp_path_factory)


@pytest.fixture(scope="session")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from started(4, tmp_path_factory)


def started(size: int, factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(size, factory.mktemp("world"))
    yield world
    world.close()


@pytest.fixture(params=["one", "two", "four"])
def world(request: pytest.FixtureRequest) -> World:
    """One rank, two ranks, four ranks."""
    return request.getfixturevalue(request.param)

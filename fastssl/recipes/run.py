"""A run: the loop's settings and one method's settings. Imports no torch."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastssl.engine.config import TrainConfig
from fastssl.methods import METHODS


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything one training run is made of; ``config.yaml`` is its plain form."""

    train: TrainConfig
    method: typing.Any  # the settings of METHODS[train.method]


def flags_of(run: Run) -> typing.Any:
    """The same as an instance of a class whose fields' types are those of this run, for flags."""
    fields = [("train", type(run.train)), ("method", type(run.method))]
    return dataclasses.make_dataclass("Run", fields, frozen=True, kw_only=True)(
        train=run.train, method=run.method
    )


def method_config(name: str) -> type:
    """The config class of the method ``name``; ValueError names the known ones."""
    if name not in METHODS:
        close = difflib.get_close_matches(name.lower(), METHODS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"--method: expected one of {', '.join(METHODS)}, received {name!r}{hint}")
    return METHODS[name][0]


def run_from_settings(settings: object, *, origin: str) -> Run:
    """The Run that ``as_plain`` turned into ``settings`` (read from ``origin``, for messages).

    Raises ValueError for a missing, unknown or wrongly typed entry.
    """
    sections = _section(settings, "the file", origin)
    train = _section(sections.get("train"), "train", origin)
    method = _section(sections.get("method"), "method", origin)
    name = train.get("method")
    if not isinstance(name, str):
        raise ValueError(f"{origin}: train.method must name a method, received {name!r}")
    return Run(
        train=_rebuild(TrainConfig, train, f"{origin}: train"),
        method=_rebuild(method_config(name), method, f"{origin}: method"),
    )


def read_run(folder: Path) -> Run:
    """The Run that ``folder``/config.yaml describes. ValueError where it describes none."""
    from fastssl.engine.run_folder import read_settings

    return run_from_settings(read_settings(folder), origin=str(folder / "config.yaml"))


@contextlib.contextmanager
def own_data(data: str) -> Iterator[None]:
    """An error about a run's own ``data`` says whose they are: nobody has typed the flag."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith(f"--data {data}: "):
            raise
        raise ValueError(
            f"the run's data cannot be used; give --data DIR if they moved ({error})"
        ) from error


def _section(value: object, what: str, origin: str) -> dict:
    if not isinstance(value, dict):
        raise ValueError(
            f"{origin}: {what} must hold named settings, received {type(value).__name__}; "
            "is this the config.yaml of a fastssl run?"
        )
    return value


def _rebuild(kind: type, values: dict, origin: str) -> typing.Any:
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(str(key) for key in values if key not in names)
    if unknown:
        raise ValueError(f"{origin}: unknown settings {', '.join(unknown)}")
    typed = {key: _typed(hints[key], item, f"{origin}.{key}") for key, item in values.items()}
    return kind(**typed)


def _typed(hint: typing.Any, value: object, origin: str) -> object:
    """``value`` as the type its field declares; YAML knows neither tuples nor paths."""
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        element = typing.get_args(hint)[0]
        return tuple(_typed(element, item, origin) for item in value)
    if typing.get_origin(hint) is typing.Literal:
        if value in typing.get_args(hint):
            return value
    else:
        for option in typing.get_args(hint) or (hint,):
            if option is Path and isinstance(value, str):
                return Path(value)
            if option is float and type(value) is int:
                return float(value)
            if type(value) is option:
                return value
    raise ValueError(f"{origin}: expected {_describe(hint)}, received {value!r}")


def _describe(hint: typing.Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")

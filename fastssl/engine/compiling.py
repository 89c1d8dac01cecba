"""torch.compile's needs and leavings: what it lacks on this machine, where its caches lie.

Without this, inductor writes to /tmp/torchinductor_USER. A run writes nothing outside its folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from fastssl.engine.console import Console

_HEADERS = "precompiled_headers"


def missing_for_compile() -> str | None:
    """What torch.compile would lack on this machine, or None."""
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++")
    if not any(shutil.which(name) for name in compilers):
        return "a C++ compiler"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return "the Python headers (python3-dev)"
    return None


def compile_method(method: nn.Module, console: Console, *, whole: bool) -> None:
    """Compile in place, so that keys keep their names. Not ``whole``: collectives stay eager."""
    missing = missing_for_compile()
    if missing is not None:
        console.warn(f"--compile needs {missing}; going on without it, slower")
        return
    console.line("compiling (about half a minute) ...")
    # Imported by the compiler, it warns of every machine without a GPU.
    logging.getLogger("torch.utils.cpp_extension").addFilter(
        lambda record: "No CUDA runtime is found" not in record.getMessage()
    )
    warnings.filterwarnings("ignore", "Torchinductor does not support code generation for complex")
    from torch import _dynamo  # slow to import

    # a penalty on gradients is part of the graph (methods/invclr.py)
    _dynamo.config.trace_autograd_ops = hasattr(method, "leaves")
    method.compile(fullgraph=whole, dynamic=False)


@contextlib.contextmanager
def compile_caches(folder: Path, *, compiling: bool) -> Iterator[None]:
    """Inductor's and Triton's caches lie in ``folder`` inside, unless the user chose a place."""
    folder = folder.absolute()
    wanted = {
        "TORCHINDUCTOR_CACHE_DIR": folder / "inductor",
        "TRITON_CACHE_DIR": folder / "triton",
    }
    before = {name: os.environ.get(name) for name in wanted if not _chosen_by_user(name)}
    for name in before:
        os.environ[name] = str(wanted[name])
    headers = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]) / _HEADERS
    try:
        with _headers_in(headers) if compiling else contextlib.nullcontext():
            yield
    finally:
        if "TORCHINDUCTOR_CACHE_DIR" in before:
            shutil.rmtree(headers, ignore_errors=True)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        for leftover in (*wanted.values(), folder):
            with contextlib.suppress(OSError):
                leftover.rmdir()  # only if empty


def _chosen_by_user(name: str) -> bool:
    """torch writes its own default into the environment; that is nobody's choice."""
    own = str(Path(tempfile.gettempdir()) / "torchinductor_")
    return not os.environ.get(name, own).startswith(own)


@contextlib.contextmanager
def _headers_in(folder: Path) -> Iterator[None]:
    """Precompiled headers (150 MB; they save a third of the compile time) go to ``folder``.

    Inductor keeps them in the temporary folder whatever its cache setting, and needs the openssl
    program for them. Where either cannot be arranged, they are switched off. The caller deletes
    them: they are of no use after the compilation.
    """
    from torch._inductor import codecache
    from torch._inductor import config as inductor

    names = ("_HEADER_DIR", "_HEADER_LOCK_DIR")
    before = {name: getattr(codecache, name, None) for name in names}
    forget = getattr(getattr(codecache, "_precompile_header", None), "cache_clear", None)
    if None in before.values() or forget is None or shutil.which("openssl") is None:
        with inductor.patch(cpp_cache_precompile_headers=False):
            yield
        return
    codecache._HEADER_DIR = str(folder)
    codecache._HEADER_LOCK_DIR = str(folder / "locks")
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(codecache, name, value)
        forget()  # it remembers paths that may go now

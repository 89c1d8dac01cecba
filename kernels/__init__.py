"""Fused operators, one folder per op: reference.py, kernel.py, op.py, spec.py."""

if __name__ != "fastssl.kernels":
    raise ImportError(
        f"this package was imported as {__name__!r}; its name is 'fastssl.kernels'. "
        "Importing it twice would register every operator twice: install the project "
        "(pip install -e .) and use 'import fastssl.kernels'."
    )

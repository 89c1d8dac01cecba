"""Packages and the compiled library; the static facts are in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    package_dir={"fastssl": "fastssl", "fastssl.kernels": "kernels"},
    packages=["fastssl", "fastssl.kernels"]
    + [f"fastssl.{name}" for name in find_packages("fastssl")]
    + [f"fastssl.kernels.{name}" for name in find_packages("kernels")],
    package_data={"fastssl": ["py.typed"], "fastssl.kernels": ["py.typed"]},
)

"""Policies: the parameters of every view are data. Needs torch and numpy, nothing else."""

from fastssl.augment.drawn import Drawn
from fastssl.augment.policy import OPERATORS, Corner, Group, Policy, Ranges, alike, reach
from fastssl.augment.presets import PRESETS, preset
from fastssl.augment.rendering import alpha_of, render, rerender, views_of, with_base
from fastssl.augment.sampling import sample
from fastssl.kernels.augment.op import augment
from fastssl.kernels.augment.settings import Settings
from fastssl.kernels.augment.table import Table

__all__ = [
    "OPERATORS",
    "PRESETS",
    "Corner",
    "Drawn",
    "Group",
    "Policy",
    "Ranges",
    "Settings",
    "Table",
    "alike",
    "alpha_of",
    "augment",
    "preset",
    "reach",
    "render",
    "rerender",
    "sample",
    "views_of",
    "with_base",
]

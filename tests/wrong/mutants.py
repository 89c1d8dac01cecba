"""Planted bugs: one line of the package replaced by a wrong one, and the tests that must go red."""

from __future__ import annotations

from tests.wrong import (
    in_audio,
    in_augment,
    in_compat,
    in_contract,
    in_data,
    in_distributed,
    in_engine,
    in_evaluation,
    in_kernels,
    in_losses,
    in_methods,
    in_science,
    in_sigmoid_pairs,
    in_soft_targets,
)

MUTANTS = in_kernels.MUTANTS + in_losses.MUTANTS + in_engine.MUTANTS + in_science.MUTANTS
MUTANTS += in_distributed.MUTANTS + in_compat.MUTANTS + in_soft_targets.MUTANTS
MUTANTS += in_augment.MUTANTS + in_data.MUTANTS
MUTANTS += in_sigmoid_pairs.MUTANTS
MUTANTS += in_audio.MUTANTS
MUTANTS += in_evaluation.MUTANTS
MUTANTS += in_methods.MUTANTS
MUTANTS += in_contract.MUTANTS

# One per room, quick to run: these are planted in the default suite too.
SAMPLE = (
    "ntxent-self-pairs-stay",
    "ntxent-temperature-gradient-dropped",
    "manifest-is-not-compared",
    "guard-looks-at-the-loss-alone",
    "lambda-chosen-on-what-it-was-fitted-to",
    "loss-supcon-self-among-its-positives",
)

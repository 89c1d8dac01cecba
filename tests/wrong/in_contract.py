"""Bugs that the contract of methods and their variants, ranks and kept claims must notice."""

from __future__ import annotations

from tests.wrong.mutant import Mutant

CONTRACT = "tests/methods/test_contract.py::test_"
VARIANTS = (
    "tests/methods/test_variants.py::test_loss_and_gradients_equal_the_paper_written_as_loops"
)
RESUMED = f"{CONTRACT}training_resumed_in_a_fresh_object_ends_in_the_same_bytes"
RANKS = "tests/distributed/test_fit.py::test_two_ranks_train_every_method_as_one_process"
CLAIMS = "tests/house/test_claims.py"


def _method(name: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    return Mutant(f"contract-{name}", f"fastssl/{file}.py", old, new, tests)


MUTANTS = (
    _method(
        "dino-resumes-at-the-first-temperature",
        "methods/dino",
        'self.register_buffer("steps", torch.zeros(()))',
        'self.register_buffer("steps", torch.zeros(()), persistent=False)',
        f"{RESUMED}[dino]",
    ),
    _method(
        "collapse-is-not-told",
        "engine/monitors",
        "_COLLAPSED_BELOW = 0.02",
        "_COLLAPSED_BELOW = 0.0",
        f"{CONTRACT}a_collapse_is_seen_by_the_monitor_and_health_is_not_taken_for_it[simclr]",
    ),
    _method(
        "swav-head-sees-one-size-at-a-time",
        "methods/swav",
        "by_size(self.projector, by_size(self.backbone, views))",
        "by_size(lambda x: self.projector(self.backbone(x)), views)",
        f"{VARIANTS}[swav-crops]",
    ),
    _method(
        "dino-teaches-by-small-crops",
        "methods/dino",
        "by_size(self.teacher, views[:2])",
        "by_size(self.teacher, views)",
        f"{VARIANTS}[dino-crops]",
    ),
    _method(
        "bits-cost-more-than-they-tell",
        "nn/latent",
        "(math.log(2) - entropy_ND).sum(1)",
        "(1 - entropy_ND).sum(1)",
        f"{VARIANTS}[bernoulli]",
    ),
    _method(
        "values-cost-more-than-they-tell",
        "nn/latent",
        "(log_NGK.exp() * log_NGK).sum(2) + math.log(self.values)",
        "(log_NGK.exp() * log_NGK).sum(2) + math.log2(self.values)",
        f"{VARIANTS}[categorical]",
    ),
    _method(
        "tangents-of-norms-over-ranks-have-no-rule",
        "nn/tangent",
        "with _norms_over_ranks(f), _Stacked():",
        "with _Stacked():",
        f"{RANKS}[invclr]",
    ),
    Mutant(
        "claims-use-any-encoder",
        "benchmarks/claims/trained.py",
        "        refuse_another(folder, run)\n",
        "        pass\n",
        (CLAIMS,),
    ),
    Mutant(
        "claims-use-encoders-of-any-commit",
        "benchmarks/claims/trained.py",
        'asked["commit"] = commit()',
        'asked["commit"] = kept["commit"]',
        (CLAIMS,),
    ),
    Mutant(
        "claims-use-any-seed",
        "benchmarks/claims/seeds.py",
        "    refuse_differences(str(file), {k: kept[k] for k in made_by if k in kept}, made_by)\n",
        "",
        (CLAIMS,),
    ),
)

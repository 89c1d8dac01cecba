"""Bugs in the precision of methods, in their settings and in what goes with what."""

from __future__ import annotations

from tests.wrong.mutant import Mutant

PRECISION = ("tests/methods/test_precision.py",)
SETTINGS = ("tests/methods/test_settings.py",)
_OFF, _AS_OUTSIDE = "enabled=False", 'enabled=torch.is_autocast_enabled("cpu")'


def _autocast(name: str, file: str, device: str, tests: tuple[str, ...]) -> Mutant:
    old = f"torch.autocast({device}.device.type, "
    return Mutant(
        f"autocast-reaches-{name}", f"fastssl/{file}.py", old + _OFF, old + _AS_OUTSIDE, tests
    )


MUTANTS = (
    _autocast("vicreg", "methods/vicreg", "z0_ND", PRECISION),
    _autocast("barlow", "methods/barlow", "z0_ND", PRECISION),
    Mutant(
        "cosines-stay-narrow",
        "fastssl/nn/cosine.py",
        "F.cosine_similarity(x_ND.to(dtype), y_ND.to(dtype))",
        "F.cosine_similarity(x_ND, y_ND)",
        PRECISION,
    ),
    Mutant(
        "split-batch-norms-see-all-ranks",
        "fastssl/engine/sync_norm.py",
        "child.num_splits > 1",
        "child.num_splits > 99",
        ("tests/engine/test_sync_norm.py",),
    ),
    Mutant(
        "amortised-keys-see-the-whole-batch",
        "fastssl/methods/amortised.py",
        "split_batch_norm(self.keys, config.bn_splits)",
        "split_batch_norm(self.keys, 1)",
        ("tests/methods/test_amortised.py",),
    ),
    Mutant(
        "amortised-takes-more-corners-than-the-policy-has",
        "fastssl/recipes/agreement.py",
        "if received != has:",
        "if received < has:",
        ("tests/commands/test_agreement.py",),
    ),
    Mutant(
        "forward-mode-meets-sync-bn",
        "fastssl/recipes/assemble.py",
        "    check_agreement(run)\n",
        "",
        ("tests/commands/test_agreement.py",),
    ),
    Mutant(
        "invclr-pays-for-variance",
        "fastssl/methods/invclr.py",
        '"penalty", config.penalty, least=0.0',
        '"penalty", config.penalty',
        SETTINGS,
    ),
)

"""Bugs in evaluations."""

from __future__ import annotations

from tests.wrong.mutant import Mutant


def _evaluation(name: str, file: str, old: str, new: str) -> Mutant:
    tests = (f"tests/evaluation/test_{file}.py",)
    return Mutant(f"evaluation-{name}", f"fastssl/evaluation/{file}.py", old, new, tests)


_COMMAND = ("tests/commands/test_evaluate.py",)
MUTANTS = (
    _evaluation("conditional-variance-over-images", "meter", "h_DNF.var(0)", "h_DNF.var(1)"),
    _evaluation("averages-are-sums-of-one", "averaging", "total / (draw + 1)", "parts[0]"),
    _evaluation(
        "vector-follows-the-fit-images",
        "invariance",
        "((fit_n, size), (held_m, max",
        "((fit_n, size), (fit_n, max",
    ),
    _evaluation(
        "sgd-decay-chosen-on-what-was-fitted",
        "sgd_probe",
        "train_probe(x_NF[fit_n], y_N[fit_n], goal.width, decay, schedule)",
        "train_probe(x_NF, y_N, goal.width, decay, schedule)",
    ),
    _evaluation("last-epoch-is-scored", "finetune", "if loss < least:", "if True:"),
    _evaluation(
        "held-out-images-are-trained-on",
        "finetune",
        "in _trained(net, train, fit_n, goal",
        "in _trained(net, train, kept_n, goal",
    ),
    _evaluation(
        "subset-is-not-stratified",
        "fractions",
        "order_N[label_N[order_N] == label]",
        "order_N",
    ),
    _evaluation(
        "fixed-readout-is-refitted",
        "robustness",
        "in expected(test_MF)",
        "in fitted(train_NF)(test_MF)",
    ),
    _evaluation("padding-windows-vote", "window_vote", "ways) * real_EP[..., None]", "ways)"),
    _evaluation(
        "ties-go-to-the-first-way",
        "window_vote",
        "sum_EQC.masked_fill(~first_EQC, -torch.inf).argmax(2)",
        "votes_EQC.argmax(2)",
    ),
    _evaluation(
        "support-is-the-first-window",
        "window_vote",
        "(unit_ES * count_N[clip_ES]).long()",
        "(0 * unit_ES).long()",
    ),
    Mutant(
        "evaluation-kept-features-of-other-images",
        "fastssl/recipes/feature_cache.py",
        "self._known[id(part)][1], *astuple(look)]",
        '"", *astuple(look)]',
        _COMMAND,
    ),
    Mutant(
        "evaluation-damaged-features-are-used",
        "fastssl/recipes/feature_cache.py",
        'facts["sha256"] != hashlib.sha256(content[8 + size :]).hexdigest()',
        "False",
        _COMMAND,
    ),
    Mutant(
        "evaluation-weights-of-another-net-are-taken",
        "fastssl/recipes/foreign.py",
        "    if strange:\n",
        "    if False:\n",
        _COMMAND,
    ),
    Mutant(
        "evaluation-nan-features-are-ranked",
        "fastssl/evaluation/knn.py",
        'check_finite("knn", train=train_NF, test=test_MF)',
        "pass",
        ("tests/evaluation/test_features.py",),
    ),
    _evaluation(
        "fifth-of-an-order-with-a-period",
        "features",
        "torch.from_numpy(\n        keyed.permutation(len(target_N), seed=0, epoch=0, "
        'stream="hold-out")\n    ).long()',
        "torch.arange(len(target_N))",
    ),
    _evaluation(
        "fifth-is-not-of-each-class", "features", "[class_N.argsort(stable=True)]", "[class_N >= 0]"
    ),
    _evaluation(
        "small-features-are-constant",
        "features",
        "(1e-12 * mean_F.abs()).clamp",
        "(1e-12 * mean_F.abs().max().expand_as(mean_F)).clamp",
    ),
    _evaluation(
        "vector-depends-on-the-scale-of-the-features",
        "invariance",
        "FLOOR * fit_NF.square().mean(0)",
        "FLOOR",
    ),
    _evaluation("collapse-is-invariance", "meter", "if total > rounding", "if total > 0"),
    _evaluation("batch-of-one-image", "finetune", ", len(fit_n) // 2)", ", len(fit_n))"),
    Mutant(
        "layers-after-the-pooling-are-passed-over",
        "fastssl/nn/expand.py",
        'if "avgpool" not in names or learnt:',
        'if "avgpool" not in names:',
        ("tests/methods/test_parts.py",),
    ),
    _evaluation("vector-leaves-the-cube", "invariance", "bits_K.clamp_(0, 1)", "pass"),
    _evaluation("ratio-upside-down", "compression", "forms[0].bits / bits", "bits / forms[0].bits"),
    Mutant(
        "bits-come-back-in-another-order",
        "fastssl/nn/codes.py",
        "torch.arange(width).flip(0)",
        "torch.arange(width)",
        ("tests/evaluation/test_compression.py",),
    ),
    Mutant(
        "two-categories-are-taken-for-signs",
        "fastssl/nn/latent.py",
        'self.layout = dim, values, "one-hot"',
        'self.layout = dim, values, "signs" if values == 2 else "one-hot"',
        ("tests/evaluation/test_compression.py",),
    ),
    Mutant(
        "export-draws-a-sample",
        "fastssl/nn/latent.py",
        "self.posterior(x_NCSS).code_ND.to",
        "self.posterior(x_NCSS).sample_ND.to",
        ("tests/evaluation/test_encoders.py",),
    ),
    _evaluation("classes-meet-twice", "few_shot", "taken_EW, last_EW", "taken_EW, new_EW"),
    _evaluation(
        "support-is-not-shuffled", "few_shot", "picked_EWK.gather(-1, shuffle_EWK)", "picked_EWK"
    ),
)

"""Bugs in the sigmoid operator, and in the loss above it, alone and over ranks."""

from __future__ import annotations

from tests.wrong.mutant import Mutant

OP = "tests/kernels/test_sigmoid_pairs.py"
LOSS = "tests/losses/test_siglip_loss.py"
RANKS = "tests/distributed/test_siglip.py"
TEXTBOOK = f"{OP}::test_float64_equals_the_textbook_loops"
GRADCHECK = f"{OP}::test_gradcheck_and_gradgradcheck_in_float64"
TWO_RANKS = f"{RANKS}::test_two_ranks_with_any_input_learnt"


def _kernel(name: str, file: str, old: str, new: str, test: str, library: bool = True) -> Mutant:
    return Mutant(f"sigmoid-{name}", f"kernels/sigmoid_pairs/{file}", old, new, (test,), library)


def _ranks(name: str, old: str, new: str, test: str = TWO_RANKS) -> Mutant:
    file = "fastssl/losses/sigmoid_ranks.py"
    return Mutant(f"sigmoid-ranks-{name}", file, old, new, (test,))


MUTANTS = (
    _kernel(
        "diagonal-runs-the-other-way",
        "reference.py",
        "torch.arange(begin, end, device=device) + problem.diagonal",
        "torch.arange(begin, end, device=device) - problem.diagonal",
        TEXTBOOK,
        False,
    ),
    _kernel(
        "weights-of-partners-keep-their-sign",
        "reference.py",
        "torch.where(partner_BK, -w_BK, w_BK)",
        "w_BK",
        GRADCHECK,
        False,
    ),
    _kernel(
        "keys-gradient-forgets-the-cotangent",
        "reference.py",
        "w_BK if g_N is None else w_BK * g_N[begin:end, None]",
        "w_BK",
        GRADCHECK,
        False,
    ),
    _kernel(
        "softplus-with-torchs-threshold",
        "reference.py",
        "-F.logsigmoid(-z_BK).sum(1)",
        "F.softplus(z_BK).sum(1)",
        TEXTBOOK,
        False,
    ),
    _kernel(
        "no-diagonal-is-the-first",
        "native.py",
        "k_KD.shape[0] if diagonal is None else diagonal,",
        "diagonal or 0,",
        TEXTBOOK,
    ),
    _kernel(
        "strides-swapped",
        "native.py",
        "*(k_KD.data_ptr(), *k_KD.stride()),",
        "*(k_KD.data_ptr(), *k_KD.stride()[::-1]),",
        TEXTBOOK,
    ),
    _kernel(
        "bias-gradient-is-that-of-the-scale",
        "op.py",
        "grads = dq_ND, dk_KD, by_scale, by_bias",
        "grads = dq_ND, dk_KD, by_scale, by_scale",
        GRADCHECK,
    ),
    _kernel(
        "second-derivative-is-cut",
        "op.py",
        "g_N, create_graph=True))",
        "g_N, create_graph=False))",
        GRADCHECK,
    ),
    Mutant(
        "siglip-mean-over-all-pairs",
        "fastssl/losses/siglip.py",
        "total / image_ND.shape[0]",
        "total / image_ND.shape[0] ** 2",
        (f"{LOSS}::test_float64_equals_the_textbook_loops",),
    ),
    _ranks("visitors-taken-for-partners", "plan.own - first, save", "0, save"),
    _ranks("keys-see-the-wrong-partners", "bias, first - plan.own", "bias, plan.own - first"),
    _ranks("keys-pulled-by-the-last-visitor", "else dk_KD + pulled_KD", "else pulled_KD"),
    _ranks(
        "ring-runs-the-other-way",
        "[: (self.rank - hop) % size]",
        "[: (self.rank + hop) % size]",
        f"{RANKS}::test_one_and_four_ranks_of_unequal_parts",
    ),
)

"""Bugs in the operators and in the losses above them."""

from __future__ import annotations

from tests.wrong.mutant import Mutant

CHECKS = "kernels/ntxent/checks.py"
NTXENT = "tests/kernels/test_ntxent.py"
CALLS = "tests/kernels/test_ntxent_calls.py"
TEXTBOOK = "test_float64_equals_the_textbook_loops"
BY_HAND = "test_the_references_hand_written_backward_is_autograds"
GRADCHECK = "test_gradcheck_and_gradgradcheck_in_float64"


def _ntxent(name: str, old: str, new: str, test: str, file: str = NTXENT) -> Mutant:
    """A bug in the reference, run with the reference behind the operator."""
    tests = tuple(f"{file}::{one}" for one in test.split())
    return Mutant(f"ntxent-{name}", "kernels/ntxent/reference.py", old, new, tests, library=False)


def _op(name: str, old: str, new: str, tests: str, file: str = "kernels/ntxent/op.py") -> Mutant:
    return Mutant(name, file, old, new, tuple(tests.split()))


REFERENCE = (
    _ntxent(
        "self-pairs-stay",
        "return logits_MM.masked_fill(diagonal_MM, -torch.inf)",
        "return logits_MM",
        TEXTBOOK,
    ),
    _ntxent(
        "self-pairs-masked-as-zero",
        "return logits_MM.masked_fill(diagonal_MM, -torch.inf)",
        "return logits_MM.masked_fill(diagonal_MM, 0.0)",
        TEXTBOOK,
    ),
    _ntxent(
        "norm-clamped-too-early",
        "torch.maximum(norm_M1, EPS / scale_M1)",
        "torch.maximum(norm_M1, 1e-3 / scale_M1)",
        TEXTBOOK,
    ),
    _ntxent(
        "not-normalised",
        "return (y_MD / norm_M1).to(",
        "return (y_MD / norm_M1.mean()).to(",
        TEXTBOOK,
    ),
    _ntxent(
        "sum-of-positives-instead-of-mean",
        ".sum(dim=1) / (num_views - 1)",
        ".sum(dim=1)",
        TEXTBOOK,
    ),
    _ntxent(
        "own-row-among-its-positives",
        "return (x_VND.sum(dim=0) - x_VND).flatten(0, 1)",
        "return x_VND.sum(dim=0).expand_as(x_VND).flatten(0, 1)",
        TEXTBOOK,
    ),
    _ntxent(
        "rows-taken-as-pairs",
        "x_VND = x_MD.unflatten(0, (num_views, -1))",
        "x_VND = x_MD.unflatten(0, (-1, num_views)).transpose(0, 1)",
        TEXTBOOK,
    ),
    _ntxent(
        "mean-is-sum",
        "return loss_M.mean()",
        "return loss_M.sum()",
        "test_mean_and_sum_are_those_of_none",
    ),
    _ntxent(
        "gradient-of-one-direction",
        "(weighted_MM + weighted_MM.T) @ z_MD",
        "(weighted_MM + weighted_MM) @ z_MD",
        BY_HAND,
    ),
    _ntxent("gradient-forgets-tau", "(num_views - 1)) / tau\n", "(num_views - 1))\n", BY_HAND),
    _ntxent(
        "gradient-pushes-positives-away",
        "@ z_MD - pull_MD /",
        "@ z_MD + pull_MD /",
        BY_HAND,
    ),
    _ntxent(
        "gradient-keeps-the-radial-part",
        "dz_MD - z_MD * radial_M1, dz_MD)",
        "dz_MD, dz_MD)",
        BY_HAND,
    ),
    _ntxent(
        "gradient-not-divided-by-the-norm",
        "dh_MD = dz_MD / norm_M1",
        "dh_MD = dz_MD",
        BY_HAND,
    ),
    _ntxent(
        "gradient-not-divided-by-m",
        '(num_rows if reduction == "mean" else 1)',
        "1",
        GRADCHECK,
    ),
    _ntxent("temperature-gradient-dropped", ".sum() / tau**2", ".sum() * 0", GRADCHECK),
    _ntxent("temperature-gradient-of-1-over-tau", ".sum() / tau**2", ".sum()", GRADCHECK),
    _ntxent(
        "temperature-gradient-has-the-wrong-sign",
        "(g_M * (positive_M - expected_M))",
        "(g_M * (expected_M - positive_M))",
        GRADCHECK,
    ),
    _ntxent(
        "norms-of-raw-squares",
        "scale_M1 = largest_M1.clamp(1.0, torch.finfo(torch.float64).max)",
        "scale_M1 = torch.ones_like(largest_M1)",
        "test_float64_norms_beyond_1e154_do_not_overflow",
    ),
    _ntxent(
        "zero-row-overflows-in-half-precision",
        ".clamp(-limit, limit)",
        "",
        "test_fp16_gradient_of_a_zero_row_saturates_and_stays_finite",
    ),
    _ntxent(
        "half-precision-overflow-is-hidden",
        "torch.where(norm_M1 > EPS, dh_MD, dh_MD.clamp(-limit, limit))",
        "dh_MD.clamp(-limit, limit)",
        "test_fp16_gradients_overflow_where_torchs_do",
    ),
    _ntxent(
        "autocast-reaches-the-formula",
        "return torch.autocast(kind, enabled=False)",
        "return nullcontext()",
        "test_autocast_changes_nothing",
        CALLS,
    ),
)

OPERATOR = (
    _op("op-second-derivative-is-cut", "create_graph=again)", "create_graph=False)", NTXENT),
    _op(
        "op-fake-has-the-input-dtype",
        "dtype = reference.accumulate_dtype(first.dtype)",
        "dtype = first.dtype",
        NTXENT,
    ),
    _op("op-temperature-gradient-loses-its-shape", ".reshape(temperature.shape)", "", NTXENT),
    _op(
        "op-gradients-run-through-dependent-inputs",
        "aliases = [tensor.view_as(tensor) for tensor in (*views, temperature)]",
        "aliases = [*views, temperature]",
        CALLS,
    ),
    _op(
        "op-forged-rows-accepted",
        "if name in shapes and tensor.shape != shapes[name]:",
        "if False:",
        CALLS,
        CHECKS,
    ),
    _op("eager-negated-views-read-raw", " or tensor.is_neg()", "", CALLS, "kernels/eager.py"),
    _op(
        "eager-tangents-dropped", "forward_ad._current_level < 0", "True", CALLS, "kernels/eager.py"
    ),
    _op("op-tiny-temperature-accepted", "1e-8 <= abs(value) <", "0 < abs(value) <", NTXENT, CHECKS),
    _op(
        "op-width-not-compared",
        "if view.shape != shape:",
        "if view.shape[0] != first.shape[0]:",
        NTXENT,
        CHECKS,
    ),
    _op("op-integers-accepted", "if dtype not in DTYPES:", "if False:", NTXENT, CHECKS),
    _op(
        "native-gradient-read-as-contiguous",
        "grad = grad.contiguous()",
        "grad = grad",
        f"{NTXENT} tests/kernels/test_native.py",
        "kernels/ntxent/native.py",
    ),
    _op(
        "native-strides-swapped",
        "(view.data_ptr(), *view.stride())",
        "(view.data_ptr(), *view.stride()[::-1])",
        NTXENT,
        "kernels/ntxent/native.py",
    ),
    _op(
        "loss-ignores-its-temperature",
        "self.temperature, reduction=self.reduction)",
        "0.1, reduction=self.reduction)",
        "tests/losses",
        "fastssl/losses/ntxent.py",
    ),
    _op(
        "loss-ignores-its-reduction",
        "self.temperature, reduction=self.reduction)",
        "self.temperature)",
        "tests/losses",
        "fastssl/losses/ntxent.py",
    ),
)

MUTANTS = REFERENCE + OPERATOR

"""Bugs in the losses over ``contrast``."""

from __future__ import annotations

from tests.wrong.mutant import Mutant

EQUATIONS = "tests/losses/test_equations.py"
EDGES = "tests/losses/test_edges.py"
HALVES = "tests/losses/test_half_gradients.py"
METRICS = "tests/losses/test_metrics.py"
PROMISES = "tests/losses/test_promises.py"
DCL = "test_dcl_and_dclw"
SUPCON = "test_sup_con"
CLIP = "test_the_scale_is_clamped_and_its_gradient_lives_at_the_limit"
NCE = "test_info_nce_with_positives_hard_negatives_and_ids"
WEIGHTED = "test_debiased_and_hard_negative_weighting"


def _loss(name: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    """A bug that the tests of ``EQUATIONS`` (or of ``file::test``) must find."""
    named = tuple(test if "/" in test else f"{EQUATIONS}::{test}" for test in tests)
    return Mutant(f"loss-{name}", f"fastssl/losses/{file}.py", old, new, named)


SHARED = (
    _loss(
        "temperature-not-inverted", "arguments",
        "else 1.0 / number", "else number", f"{EDGES}::test_dcl_and_dclw_are_lightlys",
    ),
    _loss(
        "learnt-temperature-detached", "arguments",
        "return value.reshape(()).to(wide)", "return value.detach().reshape(()).to(wide)",
        "test_cissl",
    ),
    _loss(
        "mean-over-rows-without-positives-too", "metrics",
        "self.loss_N.sum() / self.counted_N.sum().clamp_min(1)", "self.loss_N.mean()",
        f"{EDGES}::test_rows_without_a_positive_are_left_out_of_the_mean",
    ),
    _loss(
        "norm-clamped-too-early", "denominators", "EPS = 1e-12", "EPS = 0.5", "test_cissl",
    ),
    _loss(
        "float16-gradient-overflows", "denominators",
        "torch.where(zero_N1, grad_ND.clamp(-limit, limit), grad_ND).half()", "grad_ND.half()",
        f"{PROMISES}::test_a_promise_is_kept[dcl_loss-zero rows]",
    ),
    _loss(
        "float16-gradient-hides-its-overflow", "denominators",
        "torch.where(zero_N1, grad_ND.clamp(-limit, limit), grad_ND)",
        "grad_ND.clamp(-limit, limit)", f"{HALVES}::test_an_overflow_reaches_the_loss_scaler",
    ),
    _loss(
        "a-tensor-temperature-is-an-attribute", "arguments",
        "if isinstance(temperature, Tensor) and not", "if False and not",
        f"{EDGES}::test_a_tensor_as_temperature_is_a_buffer_that_moves_and_is_not_saved",
    ),
    _loss(
        "keys-lose-their-gradient", "denominators",
        "if columns or keys_KD.requires_grad:", "if columns:\n            keys_KD = keys_KD",
        "test_cissl",
    ),
    _loss(
        "detached-keys-take-two-passes", "denominators",
        "if columns or keys_KD.requires_grad:", "if True:",
        f"{EDGES}::test_nothing_of_the_queue_is_saved",
    ),
    _loss(
        "absent-class-counts-as-the-next", "classes",
        "return sums[slot_N] * known_N.reshape(-1, *[1] * (values.dim() - 1))",
        "return sums[slot_N]",
        f"{EDGES}::test_class_sums_know_who_is_absent",
    ),
    _loss(
        "top1-lost-to-rounding", "metrics", "SLACK = 16", "SLACK = 0",
        f"{METRICS}::test_a_positive_that_is_the_largest_logit_is_found_in_float32",
    ),
    _loss(
        "top1-always", "metrics", "best_N >= self.top_N - slack", "best_N >= best_N - slack",
        f"{METRICS}::test_of_pairs",
    ),
    _loss(
        "negatives-include-the-positive", "matching",
        "pull_ND = pull_ND - class_sums(k_KD, *self.ids, self.group)", "pass",
        f"{METRICS}::test_of_pairs", "test_clip",
    ),
)  # fmt: skip

OPTIONS = (
    _loss(
        "margin-added", "matching",
        "(matching.positive_N - margin) * scale", "(matching.positive_N + margin) * scale",
        "test_info_nce_of_rectangular_pairs",
    ),
    _loss(
        "margin-not-in-the-denominator", "options",
        "return self.margin is not None or self.weights", "return self.weights",
        "test_info_nce_of_rectangular_pairs",
    ),
    _loss(
        "smoothing-without-the-positive", "matching",
        "(matching.sums() * scale + logit_N) / (matching.counts() + 1)",
        "matching.sums() * scale / matching.counts()", "test_clip",
    ),
    _loss(
        "smoothing-of-one-direction", "matching",
        "sides = [matching] + ([matching.mirrored()] if symmetric else [])",
        "sides = [matching] + ([matching] if symmetric else [])", "test_clip",
    ),
    _loss(
        "beta-sharpens-only", "matching",
        "logs = [hardened(log_N, weight_N, count_N) for log_N, weight_N in pairs]",
        "logs = [log_N for log_N, weight_N in pairs]", WEIGHTED,
    ),
    _loss(
        "beta-without-the-number-of-negatives", "options",
        "ratio_N + count_N.clamp_min(1).log()", "ratio_N", WEIGHTED,
    ),
    _loss(
        "debiased-without-its-floor", "options",
        "kept_N = (excess_N < 0) & (left_N > floor_N)", "kept_N = excess_N < 0", WEIGHTED,
    ),
    _loss(
        "debiased-not-rescaled", "options", " - math.log1p(-tau_plus)", "", WEIGHTED,
    ),
    _loss(
        "debiased-before-hardened", "matching",
        "logit_N, tau_plus = matching.positive_N * scale, options.tau_plus",
        "logit_N, tau_plus = matching.positive_N * sharp, options.tau_plus", WEIGHTED,
    ),
    _loss(
        "undefined-combinations-pass", "options",
        'for weighting in ("tau_plus", "beta"):', "for weighting in ():",
        f"{PROMISES}::test_a_bad_call_is_refused_by_name",
    ),
)  # fmt: skip

EACH = (
    _loss(
        "info-nce-false-negatives-stay", "infonce",
        "whole=ALL_PAIRS if sample_ids is None else None,", "whole=ALL_PAIRS,", NCE,
    ),
    _loss(
        "info-nce-hard-negatives-raw", "infonce",
        "unit_rows(hard_negatives.flatten(0, 1))", "hard_negatives.flatten(0, 1)", NCE,
    ),
    _loss(
        "info-nce-hard-negatives-left-out", "matching",
        "return torch.logaddexp(rows_N, (hard_NH * scale).logsumexp(1))", "return rows_N", NCE,
    ),
    _loss(
        "info-nce-positive-by-position", "infonce",
        "if positives is None else k_KD[positives_N]", "", NCE,
    ),
    _loss(
        "info-nce-one-direction-twice", "matching",
        "logs = [rows_N, found.cols] if symmetric else [rows_N]",
        "logs = [rows_N, rows_N] if symmetric else [rows_N]",
        "test_info_nce_in_both_directions",
    ),
    _loss(
        "moco-positive-not-in-the-denominator", "matching",
        "return torch.logaddexp(difference_N, torch.zeros_like(difference_N))",
        "return difference_N", "test_moco",
    ),
    _loss(
        "moco-tiny-losses-cancel", "matching",
        "return torch.logaddexp(difference_N, torch.zeros_like(difference_N))",
        "return torch.logaddexp(log_negatives_N, logit_N) - logit_N",
        f"{EDGES}::test_a_row_that_finds_its_partner_alone_has_a_tiny_loss_to_full_precision",
    ),
    _loss(
        "moco-key-not-normalised", "moco",
        "q_ND, k_ND = unit_rows(query), unit_rows(key)", "q_ND, k_ND = unit_rows(query), key",
        "test_moco",
    ),
    _loss(
        "moco-key-detached", "moco",
        "unit_rows(query), unit_rows(key)", "unit_rows(query), unit_rows(key.detach())",
        "test_moco",
    ),
    _loss(
        "cissl-target-on-the-other-view-alone", "cissl",
        "b_VND.mean(0)", "b_VND.roll(1, 0)", "test_cissl",
    ),
    _loss(
        "cissl-denominator-without-the-teachers-gradient", "cissl",
        "denominators(a_MD, b_MD, scale, group", "denominators(a_MD, b_MD.detach(), scale, group",
        "test_cissl",
    ),
    _loss(
        "cissl-teacher-detached", "cissl", "unit_rows(teacher)", "unit_rows(teacher.detach())",
        "test_cissl",
    ),
    _loss("clip-one-direction", "clip", "symmetric=True", "symmetric=False", "test_clip"),
    _loss(
        "clip-clamp-kills-the-gradient", "clip",
        "value.clamp(max=limit) + (log_scale - value)", "log_scale.clamp(max=limit)",
        f"{EDGES}::{CLIP}",
    ),
    _loss(
        "clip-no-clamp", "clip", "value.clamp(max=limit)", "value", f"{EDGES}::{CLIP}",
    ),
    _loss(
        "supcon-partner-not-added-back", "denominators",
        "rows_M = loss_M + (z_MD * z_MD.roll(half, 0)).sum(1) * scale", "rows_M = loss_M", SUPCON,
    ),
    _loss(
        "supcon-self-among-its-positives", "supcon",
        "class_sums(z_MD, labels_M, labels_M, group) - z_MD",
        "class_sums(z_MD, labels_M, labels_M, group)", SUPCON,
    ),
    _loss(
        "supcon-in-without-the-mean", "supcon",
        "found.rows - same.rows + log_counts_M", "found.rows - same.rows", SUPCON,
    ),
    _loss(
        "supcon-in-positives-of-others", "supcon", 'keep="same"', 'keep="different"', SUPCON,
    ),
    _loss(
        "supcon-rows-without-positives-count", "supcon",
        "loss_M = torch.where(some_M, found.rows - positive_M * scale, 0.0)",
        "loss_M = found.rows - positive_M * scale", SUPCON,
    ),
    _loss(
        "supcon-views-labelled-view-first", "supcon",
        "labels_N.repeat_interleave(num_rows // num_samples, output_size=num_rows)",
        "labels_N.repeat(num_rows // num_samples)", "test_sup_con_of_views",
    ),
    _loss(
        "multicrop-ids-of-the-first-crop", "multicrop",
        "return torch.cat(checked)", "return torch.cat(checked).clamp(max=2)",
        "test_multi_crop_nt_xent_with_ids",
    ),
    _loss(
        "dcl-positive-in-the-denominator", "dcl",
        "log_M - pull_M,", "log_M.logaddexp(pull_M) - pull_M,", DCL,
    ),
    _loss(
        "dclw-weight-has-a-gradient", "dcl",
        "positive_N.detach()[: view0.shape[0]]", "positive_N[: view0.shape[0]]", DCL,
    ),
    _loss(
        "dclw-weight-upside-down", "dcl",
        "(2 - num_samples * share_N)", "(num_samples * share_N)", DCL,
    ),
    _loss(
        "dclw-weight-without-sigma", "dcl",
        "detach()[: view0.shape[0]] / sigma", "detach()[: view0.shape[0]]", DCL,
    ),
    _loss(
        "two-views-partner-is-the-row-itself", "two_views",
        "(z_MD * z_MD.roll(num_samples, 0)).sum(1)", "(z_MD * z_MD).sum(1)",
        "test_nt_xent_with_options",
    ),
    _loss(
        "two-views-ids-interleaved", "two_views",
        "ids_M = ids_N.repeat(2)", "ids_M = ids_N.repeat_interleave(2)",
        "test_nt_xent_with_options",
    ),
)  # fmt: skip

MUTANTS = SHARED + OPTIONS + EACH

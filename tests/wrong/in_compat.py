"""Bugs in the replacements of other libraries' losses."""

from __future__ import annotations

from tests.wrong.mutant import Mutant


def _compat(name: str, module: str, old: str, new: str, test: str) -> Mutant:
    file = f"fastssl/compat/{module}.py"
    return Mutant(f"compat-{name}", file, old, new, (f"tests/compat/{test}",))


MUTANTS = (
    _compat(
        "bank-holds-queries",
        "lightly",
        "self.memory_bank.enqueue(positive_ND)",
        "self.memory_bank.enqueue(query_ND)",
        "test_lightly.py::test_consecutive_calls_with_a_bank",
    ),
    _compat(
        "bank-keeps-its-pointer-at-the-end",
        "lightly",
        "0 if stop == num_rows else stop",
        "stop % (num_rows + 1)",
        "test_lightly.py::test_consecutive_calls_with_a_bank",
    ),
    _compat(
        "bank-written-for-its-own-sake",
        "lightly",
        "if out0.requires_grad:",
        "if out1.requires_grad:",
        "test_lightly.py::test_the_bank_is_written_only_where_the_query_requires_a_gradient",
    ),
    _compat(
        "weights-of-one-order",
        "lightly",
        "self._weights(z1_ND, z0_ND)",
        "self._weights(z0_ND, z1_ND)",
        "test_lightly.py::test_a_weight_function_with_a_gradient",
    ),
    _compat(
        "anchor-among-its-positives",
        "metric_pairs",
        "found_ND = found_ND - key_KD",
        "pass",
        "test_pytorch_metric_learning.py::test_pairs_by_label",
    ),
    _compat(
        "references-are-never-the-anchors",
        "pytorch_metric_learning",
        "own = ref_emb is None or ref_labels is None or ref_labels is labels",
        "own = ref_emb is None",
        "test_pytorch_metric_learning.py::test_a_reference_with_the_labels_themselves",
    ),
    _compat(
        "bias-left-out-of-the-graph",
        "open_clip",
        "loss = loss + 0 * logit_bias.sum()",
        "pass",
        "test_open_clip.py::test_every_parameter_is_part_of_the_graph",
    ),
    _compat(
        "row-is-its-own-positive",
        "solo",
        'keep="same", labels=(ids, ids), rows=(rows, rows)',
        'keep="same", labels=(ids, ids)',
        "test_solo.py::test_simclr_with_any_number_of_crops",
    ),
)

"""Bugs in the soft-target operators, the queue write, and the losses above them."""

from __future__ import annotations

from tests.wrong.mutant import Mutant

SOFT = "tests/kernels/test_soft_targets.py"
RING = "tests/kernels/test_enqueue.py"
LOSSES = "tests/losses/test_soft_target_losses.py"
ERRORS = f"{SOFT}::test_error_is_within_twice_torchs_own_at_every_dtype"


def _kernel(name: str, file: str, old: str, new: str, test: str) -> Mutant:
    return Mutant(name, f"kernels/{file}", old, new, (test,))


def _loss(name: str, file: str, old: str, new: str, test: str) -> Mutant:
    return Mutant(name, f"fastssl/losses/{file}", old, new, (test,))


MUTANTS = (
    _kernel(
        "soft-targets-softmax-jacobian-dropped",
        "soft_targets/reference.py",
        "(u_NC - (q_NC * u_NC).sum(1, keepdim=True))",
        "u_NC",
        f"{SOFT}::test_the_references_hand_written_backward_is_autograds",
    ),
    _kernel(
        "soft-targets-marginal-gradient-not-a-mean",
        "soft_targets/native.py",
        "g_marginal_C.to(dtype) / len(student_NC)",
        "g_marginal_C.to(dtype)",
        ERRORS,
    ),
    _kernel(
        "soft-targets-strides-swapped",
        "soft_targets/native.py",
        "*teacher_NC.stride(),",
        "*teacher_NC.stride()[::-1],",
        f"{SOFT}::test_float64_equals_the_textbook_loops",
    ),
    _kernel(
        "prototypes-keep-the-last-chunk-alone",
        "soft_targets/prototypes.py",
        "if wants[1] and begin == 0:",
        "if wants[1]:",
        "tests/kernels/test_prototypes.py",
    ),
    _loss(
        "dissl-collapses-the-marginal",
        "dissl.py",
        "- maximality *",
        "+ maximality *",
        f"{LOSSES}::test_dissl_at_uniform_outputs",
    ),
    _loss(
        "dissl-invariance-at-the-students-temperature",
        "dissl.py",
        "student_temperature=tau, teacher",
        "student_temperature=1.0, teacher",
        f"{LOSSES}::test_dissl_is_the_paper",
    ),
    _loss(
        "sinkhorn-not-balanced",
        "swav.py",
        "(logits_NC + column_C).softmax(1)",
        "logits_NC.softmax(1)",
        f"{LOSSES}::test_sinkhorn_is_algorithm_1",
    ),
    _loss(
        "dino-centre-moves-before-the-backward",
        "dino.py",
        "self.centre.clone(),",
        "self.centre,",
        f"{LOSSES}::test_a_backward_after_the_centre_moved_uses_the_old_one",
    ),
    _kernel(
        "enqueue-write-unseen-by-autograd",
        "enqueue/native.py",
        "if not written.is_inference():",
        "if False:",
        f"{RING}::test_a_gradient_that_needs_the_old_rows_notices_the_write",
    ),
    _kernel(
        "enqueue-does-not-wrap-around",
        "enqueue/reference.py",
        "places_N.remainder(capacity)",
        "places_N.clamp(max=capacity - 1)",
        f"{RING}::test_a_large_batch_over_several_threads_is_the_reference",
    ),
    _loss(
        "queue-writes-into-the-first-queue-always",
        "queue.py",
        "enqueue(self.rows[queue], self.pointer[queue], keys)",
        "enqueue(self.rows[0], self.pointer[0], keys)",
        "tests/losses/test_key_queue.py::test_queues_side_by_side_are_separate_queues",
    ),
)

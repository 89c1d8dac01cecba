"""Bugs in methods, data and evaluation."""

from __future__ import annotations

from tests.wrong.mutant import Mutant

CONTRACT = "tests/methods/test_contract.py"
AMORTISED = "tests/methods/test_amortised.py"


def _data(name: str, file: str, old: str, new: str) -> Mutant:
    tests = ("tests/data/test_keyed.py", "tests/data/test_spirograph.py")
    return Mutant(f"data-{name}", f"fastssl/{file}.py", old, new, tests)


def _amortised(name: str, old: str, new: str, test: str) -> Mutant:
    file = "fastssl/methods/amortised.py"
    return Mutant(f"amortised-{name}", file, old, new, (f"{AMORTISED}::test_{test}",))


METHODS = (
    Mutant(
        "tangents-of-batch-norm-forget-how-its-statistics-move",
        "fastssl/nn/tangent.py",
        ".addcmul_(on_q, g_dx)",
        "",
        ("tests/methods/test_invclr.py",),
    ),
    Mutant(
        "invclr-moves-features-along-themselves",
        "fastssl/methods/invclr.py",
        "dunit_NF = dunit_NF - unit_NF * (unit_NF * dunit_NF).sum(1, keepdim=True)",
        "dunit_NF = dunit_NF * 1.0",
        (CONTRACT,),
    ),
    Mutant(
        "invclr-bounds-no-sample",
        "fastssl/methods/invclr.py",
        "(variance_N * (self.clip / (variance_N + self.clip))).mean()",
        "variance_N.mean()",
        ("tests/methods/test_invclr.py",),
    ),
    Mutant(
        "invclr-relative-to-nothing",
        "fastssl/methods/invclr.py",
        "variance_N / unit_NF.var(0).sum().clamp(min=1e-12)",
        "variance_N",
        ("tests/methods/test_invclr.py",),
    ),
    Mutant(
        "simclr-trains-the-backbone-alone",
        "fastssl/methods/simclr.py",
        "self.projector(h_MF).chunk(2)",
        "h_MF.chunk(2)",
        (CONTRACT,),
    ),
    Mutant(
        "simclr-contrasts-a-view-with-itself",
        "fastssl/methods/simclr.py",
        "return self.loss(z0_ND, z1_ND)",
        "return self.loss(z0_ND, z0_ND)",
        (CONTRACT,),
    ),
    Mutant(
        "simclr-stops-a-gradient",
        "fastssl/methods/simclr.py",
        "return self.loss(z0_ND, z1_ND)",
        "return self.loss(z0_ND, z1_ND.detach())",
        (CONTRACT,),
    ),
    Mutant(
        "simclr-chance-counts-the-self-pair",
        "fastssl/methods/simclr.py",
        "math.log(2 * num_samples - 1)",
        "math.log(2 * num_samples)",
        (CONTRACT,),
    ),
    _amortised(
        "one-queue-for-all",
        "k_ND, queue=corner",
        "k_ND, queue=0 * corner",
        "keys_enter_the_queue_of_their_corner_and_the_loss_reads_that_queue",
    ),
    _amortised(
        "reads-another-queue",
        "0, corner.view(1)",
        "0, corner.view(1) - 1",
        "keys_enter_the_queue_of_their_corner_and_the_loss_reads_that_queue",
    ),
    _amortised(
        "keys-are-invariant-to-all",
        'slow["backbone"](view, bits_K)',
        'slow["backbone"](view)',
        "queries_and_keys_are_told_the_same_vector",
    ),
    _amortised(
        "one-predictor-for-all",
        "(q_ND, corner)",
        "(q_ND, 0 * corner)",
        "the_heads_of_other_corners_learn_nothing",
    ),
)

DATA = (
    _data("epoch-ignored", "augment/keyed", "int(epoch) & _MASK", "0"),
    _data("seed-ignored", "augment/keyed", "int(seed) & _MASK", "0"),
    _data("stream-ignored", "augment/keyed", ", stream_key(stream))", ", 0)"),
    _data(
        "index-ignored", "augment/keyed", "(index.astype(np.uint64)[:, None]", "(0 * index[:, None]"
    ),
    _data("uniform-never-above-half", "augment/keyed", "* 2.0**-53", "* 2.0**-54"),
    _data("views-are-the-same", "augment/spirograph", 'stream=f"view{view}")', 'stream="view")'),
    _data(
        "views-do-not-change", "augment/spirograph", "epoch=epoch, stream=f", "epoch=0, stream=f"
    ),
    _data("order-does-not-change", "data/spirograph", "order(epoch)[", "order(0)["),
    _data(
        "test-objects-are-training-objects",
        "data/spirograph",
        "draw_targets(index_n, seed=self._seed, split=split)",
        'draw_targets(index_n, seed=self._seed, split="train")',
    ),
    _data(
        "curve-turns-the-wrong-way",
        "augment/spirograph",
        "- h * turn_NJ.sin()",
        "+ h * turn_NJ.sin()",
    ),
    _data(
        "foreground-is-background",
        "augment/spirograph",
        "front_NC - back_NC,",
        "back_NC - front_NC,",
    ),
    _data(
        "resumes-one-batch-early",
        "data/spirograph",
        "start=start_step)",
        "start=max(0, start_step - 1))",
    ),
)


def _policy(name: str, file: str, old: str, new: str, test: str) -> Mutant:
    return Mutant(
        f"augment-{name}", f"fastssl/augment/{file}.py", old, new, (f"tests/augment/{test}.py",)
    )


AUGMENT = (
    Mutant(
        "augment-table-does-not-reach-the-method",
        "fastssl/engine/step.py",
        "table = self._leaves(batch.table)",
        "table = self._leaves(batches[0].table)",
        ("tests/engine/test_step.py::test_a_method_gets_the_table_of_its_own_micro_batch",),
    ),
    _policy("shift-copies-the-sign", "counter", "(1 << (64 - places)) - 1", "-1", "test_counter"),
    _policy("corner-is-always-the-first", "sampling", "% num_corners", "% 1", "test_presets"),
    _policy(
        "attempt-that-does-not-fit",
        "crop",
        "fits_VNA.to(torch.int8)",
        "w_VNA.ge(1).to(torch.int8)",
        "test_crop",
    ),
    _policy(
        "last-place-is-never-drawn", "crop", "(width_N - w_VN + 1)", "(width_N - w_VN)", "test_crop"
    ),
    _policy(
        "views-are-the-same", "sampling", 'f"augment/view{view}"', '"augment/view"', "test_sampling"
    ),
    _policy(
        "order-is-fixed",
        "sampling",
        "order_VN * limits.shuffled_V[:, None]",
        "order_VN * 0",
        "test_presets",
    ),
    _policy(
        "base-has-the-jitter",
        "rendering",
        'STAGES.index("jitter")]',
        'STAGES.index("gray")]',
        "test_sampling",
    ),
    _policy(
        "byol-is-symmetric",
        "presets",
        "image_size, num_views, (0, 1))",
        "image_size, num_views, (0,))",
        "test_presets",
    ),
    _policy(
        "bits-are-not-the-corners",
        "sampling",
        "torch.tensor(corner.bits,",
        "torch.tensor(policy.corners[0].bits,",
        "test_presets",
    ),
)

EVALUATION = (
    Mutant(
        "lambda-chosen-on-what-it-was-fitted-to",
        "fastssl/evaluation/ridge.py",
        "normal.predict(held_MF, x) - held_MT)",
        "normal.predict(fit_NF, x) - train_NT[fit_n])",
        ("tests/evaluation/test_ridge.py",),
    ),
    Mutant(
        "ridge-error-averaged-over-the-wrong-axis",
        "fastssl/evaluation/ridge.py",
        "error_T = squares_MT.mean(0)",
        "error_T = squares_MT.mean(1)",
        ("tests/evaluation/test_ridge.py",),
    ),
    Mutant(
        "ridge-forgets-the-mean",
        "fastssl/evaluation/ridge.py",
        "return test_MF @ weight_FT + self.mean_T",
        "return test_MF @ weight_FT",
        ("tests/evaluation/test_ridge.py",),
    ),
    Mutant(
        "standardised-with-the-test-split",
        "fastssl/evaluation/features.py",
        "mean_F = train_NF.mean(0)",
        "mean_F = torch.cat([train_NF, *(other.double() for other in others)]).mean(0)",
        ("tests/evaluation",),
    ),
    Mutant(
        "features-in-training-mode",
        "fastssl/evaluation/features.py",
        ".eval()  # type",
        ".train()  # type",
        ("tests/evaluation",),
    ),
    Mutant(
        "knn-without-normalisation",
        "fastssl/evaluation/knn.py",
        "unit_NF = F.normalize(train_NF.float(), dim=1)",
        "unit_NF = train_NF.float()",
        ("tests/evaluation/test_knn.py",),
    ),
    Mutant(
        "knn-counts-votes-without-weights",
        "fastssl/evaluation/knn.py",
        "((near_mK.double() - 1) / temperature).exp()",
        "torch.ones_like(near_mK, dtype=torch.float64)",
        ("tests/evaluation/test_knn.py",),
    ),
    Mutant(
        "linear-probe-penalty-dropped",
        "fastssl/evaluation/linear.py",
        "+ penalty * weight_CF.square().sum()",
        "",
        ("tests/evaluation/test_linear.py",),
    ),
    Mutant(
        "linear-probe-penalty-chosen-as-the-worst",
        "fastssl/evaluation/linear.py",
        "losses.index(min(losses))",
        "losses.index(max(losses))",
        ("tests/evaluation/test_linear.py",),
    ),
)


def _ema(name: str, old: str, new: str) -> Mutant:
    return Mutant(f"ema-{name}", "fastssl/nn/ema.py", old, new, ("tests/engine/test_ema.py",))


AVERAGES = (
    _ema("moves-by-the-momentum", "slow, fast, 1.0 - momentum", "slow, fast, momentum"),
    _ema("forgets-buffers", "            torch._foreach_copy_(*copied)", "            pass"),
    _ema("averages-no-buffers", 'self.buffers_are == "average" and', "False and"),
    _ema("cosine-ends-below-one", "0.5 * (1.0 + math.cos", "0.5 * (1.5 + math.cos"),
    _ema("is-trained", ".requires_grad_(False)", ""),
)

MUTANTS = METHODS + DATA + AUGMENT + EVALUATION + AVERAGES

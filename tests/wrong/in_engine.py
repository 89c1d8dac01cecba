"""Bugs in the loop, its checkpoints, optimisers, monitors and run folders."""

from __future__ import annotations

from tests.wrong.mutant import Mutant

STEP = "tests/engine/test_step.py"
CHECKPOINT = "tests/engine/test_checkpoint.py"
SIGNALS = "tests/engine/test_signals.py"


def _engine(room: str, name: str, old: str, new: str, tests: str = "") -> Mutant:
    """A bug in one file of the engine, for the tests of the same name."""
    tests_file = f"tests/engine/test_{tests or room}.py"
    return Mutant(f"{room}-{name}", f"fastssl/engine/{room}.py", old, new, (tests_file,))


ENGINE = (
    _engine(
        "optim",
        "oscillation-stays-down",
        "math.pi * (step - warmup) / half_period",
        "math.pi * min(1, (step - warmup) / half_period)",
    ),
    _engine("run_folder", "later-settings-always-count", " and k not in later}", "}"),
    Mutant(
        "manifest-is-not-compared",
        "fastssl/engine/checkpoint.py",
        "if actual != manifest[name]:",
        "if False:",
        (f"{CHECKPOINT}::test_every_flipped_bit_is_refused",),
    ),
    Mutant(
        "manifest-compares-sizes-alone",
        "fastssl/engine/checkpoint.py",
        "if actual != manifest[name]:",
        'if actual["bytes"] != manifest[name]["bytes"]:',
        (f"{CHECKPOINT}::test_every_flipped_bit_is_refused",),
    ),
    Mutant(
        "pruned-before-verified",
        "fastssl/engine/checkpoint.py",
        "        verify(final)\n",
        "        [_delete(old) for _, old in newest_first(folder)[1:]]\n        verify(final)\n",
        (f"{CHECKPOINT}::test_nothing_is_pruned_when_the_new_checkpoint_does_not_verify",),
    ),
    Mutant(
        "links-are-followed",
        "fastssl/engine/checkpoint.py",
        "os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK",
        "os.O_RDONLY | os.O_NONBLOCK",
        (f"{CHECKPOINT}::test_a_symbolic_link_is_refused",),
    ),
    Mutant(
        "random-state-is-not-restored",
        "fastssl/engine/state.py",
        'set_rng_state(snapshot.state["rng"], device)',
        'snapshot.state["rng"]',
        (f"{SIGNALS}::test_a_signal_saves_the_step_and_the_run_continues_exactly",),
    ),
    Mutant(
        "optimiser-state-is-not-restored",
        "fastssl/engine/state.py",
        "((tensors, snapshot.model), (optim, snapshot.optim))",
        "((tensors, snapshot.model),)",
        (f"{SIGNALS}::test_a_signal_saves_the_step_and_the_run_continues_exactly",),
    ),
    Mutant(
        "guard-counts-but-does-not-skip",
        "fastssl/engine/step.py",
        "self._optimizer.found_inf = bad",
        "self._optimizer.found_inf = bad * 0",
        (STEP,),
    ),
    Mutant(
        "guard-looks-at-the-loss-alone",
        "fastssl/engine/guard.py",
        "~(torch.isfinite(loss) & torch.isfinite(grad_norm))",
        "~torch.isfinite(loss)",
        (STEP,),
    ),
    Mutant(
        "guard-leaves-buffers",
        "fastssl/engine/step.py",
        "        self._guard.undo(bad)\n",
        "",
        (STEP,),
    ),
    Mutant(
        "row-of-bad-steps-never-resets",
        "fastssl/engine/guard.py",
        'count["in_a_row"] *= bad',
        'count["in_a_row"] *= 1',
        (STEP,),
    ),
    Mutant(
        "accumulation-sums-instead-of-averaging",
        "fastssl/engine/step.py",
        "share = 1.0 / len(batches)",
        "share = 1.0",
        (STEP,),
    ),
)

OPTIMISERS = (
    _engine("optim", "warm-up-one-step-late", "peak * (step + 1) / warmup", "peak * step / warmup"),
    _engine("optim", "schedule-does-not-reach-zero", "max(1, total - warmup)", "max(1, total)"),
    _engine("optim", "biases-decay", '"weight_decay": 0.0}', '"weight_decay": weight_decay}'),
    _engine("lars", "trust-ratio-forgets-decay", "(g + decay * w + group", "(g + group", "optim"),
    _engine(
        "lars", "momentum-of-one", 'velocities, group["momentum"])', "velocities, 1.0)", "optim"
    ),
    _engine(
        "lars", "bad-steps-counted", "torch.where(bad, t, v)", "torch.where(bad, v, v)", "optim"
    ),
)

RUN_FOLDERS = (
    _engine("run_folder", "a-run-is-overwritten", 'if not train["overwrite"]:', "if False:"),
    _engine("run_folder", "foreign-files-are-taken-over", "    if foreign:\n", "    if False:\n"),
    _engine("run_folder", "lock-is-shared", "fcntl.LOCK_EX |", "fcntl.LOCK_SH |"),
    _engine("run_folder", "changed-settings-accepted", "if not changed:", "if True:"),
    _engine(
        "signals",
        "second-interrupt-is-swallowed",
        "signal.signal(each, signal.SIG_DFL)",
        "signal.signal(each, self._arrived)",
    ),
)

MONITORS = (
    _engine("monitors", "uniformity-without-exp", ".mul(-2).exp()", ".mul(-2)"),
    _engine("monitors", "rankme-is-the-entropy", "torch.exp(-(p_K", "(-(p_K"),
    _engine("monitors", "alignment-not-squared", "gap_NF.square().sum(dim=1)", "gap_NF.sum(dim=1)"),
    _engine("monitors", "std-not-scaled", " * math.sqrt(f_NF.shape[1])", ""),
)


def _start(name: str, file: str, old: str, new: str, test: str) -> Mutant:
    return Mutant(name, f"fastssl/{file}.py", old, new, (f"tests/{test}",))


FOLDER = "data/test_folder.py"
FAILED_START = "commands/test_failed_start.py"
STARTS_AND_ENDS = (
    _engine(
        "run_folder",
        "a-failed-start-claims-it",
        "        if not _holds_run(self.path):\n            _take",
        "        if False:\n            _take",
    ),
    _engine("run_folder", "a-device-is-a-setting", "if key != RESOLVED", "if True"),
    _engine(
        "run_folder",
        "a-lock-without-a-name-counts",
        "if not _is_current(",
        "if 0 and not _is_current(",
    ),
    _engine("trackers", "wandb-goes-online", '"WANDB_MODE": "offline"', '"WANDB_MODE": "online"'),
    _start(
        "a-bad-file-in-nineteen-ends-the-run",
        "data/roster",
        "if self._max_bad is not None and share > self._max_bad:",
        "if share > (0.05 if self._max_bad is None else self._max_bad):",
        FOLDER,
    ),
    _start("a-stand-in-twice", "data/roster", "if candidate not in taken:", "if True:", FOLDER),
    _start("a-glance-that-reads-all", "data/scan", "time.monotonic() < until", "True", FOLDER),
    _start(
        "a-signal-outside-the-loop-is-lost",
        "engine/signals",
        "if self.requested is not None:",
        "if False:",
        FAILED_START,
    ),
    _start(
        "a-finished-run-is-scored-twice",
        "recipes/assemble",
        "if not recorded_by(folder.path, BY):",
        "if True:",
        f"{FAILED_START}::test_a_finished_run_that_is_resumed_is_not_scored_twice",
    ),
    _start(
        "changed-data-go-on",
        "engine/same_data",
        "if k != _GIVEN} == now:",
        "if k != _GIVEN} or now:",
        "commands/test_moved_data.py",
    ),
    _start(
        "validated-after-the-folder-is-claimed",
        "recipes/assemble",
        "        parts = validated(run, cache_dir=folder.cache, num_ranks=ranks.size)\n",
        "        folder.begin({})\n"
        "        parts = validated(run, cache_dir=folder.cache, num_ranks=ranks.size)\n",
        FAILED_START,
    ),
)

MUTANTS = ENGINE + OPTIMISERS + RUN_FOLDERS + MONITORS + STARTS_AND_ENDS

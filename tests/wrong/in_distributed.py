"""Bugs in what ranks exchange, in the two passes of a cached step and in the loop over ranks."""

from __future__ import annotations

from tests.wrong.mutant import Mutant

LAYER = "fastssl/losses/distributed.py"
ONE_BATCH = "tests/distributed/test_one_batch.py"
TRAINED = f"{ONE_BATCH}::test_ranks_train_like_one_process_on_the_whole_batch"
COMPAT = "tests/distributed/test_compat.py"
CACHED = "fastssl/losses/cached.py"
CACHED_TESTS = "tests/losses/test_cached.py"
FIT = "tests/distributed/test_fit.py"
UNEQUAL = f"{ONE_BATCH}::test_parts_of_unequal_size_are_weighted_exactly"

MUTANTS = (
    Mutant(
        "what-rows-do-in-the-denominators-of-others-is-left-out",
        LAYER,
        "g_other, lse_other = theirs or (nothing, nothing)",
        "g_other, lse_other = nothing, nothing",
        (f"{TRAINED}[two-NTXent]",),
    ),
    Mutant(
        "scale-gradient-counted-twice",
        LAYER,
        "(dscale / 2).to(scale.dtype)",
        "dscale.to(scale.dtype)",
        (f"{TRAINED}[two-SupCon]",),
    ),
    Mutant(
        "ring-forgets-the-blocks-before",
        LAYER,
        "torch.logaddexp(merged[0], rows)",
        "rows",
        ("tests/distributed/test_layer.py::test_two_towers_with_any_of_them_learnt",),
    ),
    Mutant(
        "sum-over-ranks-keeps-its-gradient-at-home",
        LAYER,
        "return _SumOverRanks.apply(grad, ctx.group), None",
        "return grad, None",
        (f"{TRAINED}[two-DISSL]",),
    ),
    Mutant(
        "local-mean-of-unequal-parts",
        LAYER,
        "loss_M.sum() * (len(counts) / sum(counts))",
        "loss_M.mean()",
        (f"{UNEQUAL}[CLIP]",),
    ),
    Mutant(
        "self-pairs-of-other-ranks",
        LAYER,
        "first = sum(counts[: dist.get_rank(process_group(group))])",
        "first = 0",
        (f"{TRAINED}[two-NTXent]",),
    ),
    Mutant(
        "ring-of-class-sums-keeps-its-gradient-at-home",
        "fastssl/losses/classes.py",
        "return _met(key_ids_K, grad_ND, query_ids_N, ctx.group), None, None, None",
        "return _table(grad_ND, key_ids_K, query_ids_N, None), None, None, None",
        (
            f"{ONE_BATCH}::test_a_ring_of_ranks_trains_like_one_process_on_the_whole_batch[two-SupCon]",
        ),
    ),
    Mutant(
        "ring-gathers",
        "fastssl/losses/exchange.py",
        "        return RoundTrip(group.group, counts)\n",
        "        return AllGather(group.group, counts)\n",
        (
            "tests/distributed/test_layer.py::test_the_ring_moves_rows_and_two_numbers_and_never_a_gradient",
        ),
    ),
    Mutant(
        "clip-without-gathered-gradient-trains-at-full-scale",
        "fastssl/compat/clip_over_ranks.py",
        "return grad / ctx.parts, None",
        "return grad, None",
        (f"{COMPAT}::test_clip_over_ranks_in_every_mode",),
    ),
    Mutant(
        "clip-scale-gets-a-share-of-the-whole-loss",
        "fastssl/compat/clip_over_ranks.py",
        "return sum_over_ranks(grad, group=ctx.group) / num_ranks(ctx.group), None",
        "return grad, None",
        (f"{COMPAT}::test_clip_over_ranks_in_every_mode",),
    ),
    Mutant(
        "lightlys-bank-takes-the-keys-of-one-rank",
        "fastssl/compat/lightly.py",
        "            batch_ND = gather_rows(batch_ND, group=group)\n",
        "            pass\n",
        (f"{COMPAT}::test_lightlys_bank_takes_the_keys_of_all_ranks",),
    ),
    Mutant(
        "cached-step-draws-anew",
        CACHED,
        "            torch.set_rng_state(on_cpu)\n",
        "",
        (f"{CACHED_TESTS}::test_the_gradients_of_one_big_batch_with_dropout",),
    ),
    Mutant(
        "cached-step-counts-the-first-pass",
        CACHED,
        "            buffer.copy_(saved)",
        "            pass",
        (f"{CACHED_TESTS}::test_running_statistics_move_once",),
    ),
    Mutant(
        "every-rank-trains-on-the-first-part",
        "fastssl/data/batch.py",
        "    rank, size = shard\n",
        "    rank, size = 0, shard[1]\n",
        (f"{FIT}::test_two_ranks_end_with_the_weights_of_one_process[1]",),
    ),
    Mutant(
        "batch-norm-of-a-part",
        "fastssl/engine/ranks.py",
        "        over_ranks(method, dist.group.WORLD)\n",
        "        pass\n",
        (f"{FIT}::test_two_ranks_end_with_the_weights_of_one_process[1]",),
    ),
    Mutant(
        "ranks-resume-with-the-random-state-of-the-first",
        "fastssl/engine/loop.py",
        'facts["rng"][self.ranks.rank]',
        'facts["rng"][0]',
        (f"{FIT}::test_a_signal_to_any_rank_stops_all_and_the_run_resumes_to_the_same_bytes",),
    ),
    Mutant(
        "resumed-at-another-number-of-ranks",
        "fastssl/engine/resume.py",
        "if made_by != size:",
        "if False:",
        (f"{FIT}::test_another_number_of_ranks_is_refused_with_the_reason",),
    ),
)

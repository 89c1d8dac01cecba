"""Few-shot episodes on clips of any length, each in windows (Heggan et al. 2023, 2305.17191).

Support: one window of each clip, drawn anew in every episode. Query: a readout answers for every
window of the clip; the class with most votes is the clip's, of several with as many the one whose
scores, summed over the windows, are the largest. Readouts: evaluation.few_shot.
"""

# shapes: W windows of all clips, N clips, F features, E episodes, C ways, K samples of a class,
# S support, Q query clips, P windows of an episode's query clips
from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor

from fastssl.evaluation.few_shot import (
    CHUNK,
    CLASSIFIERS,
    check_classifiers,
    draw_episodes,
    one_thread,
    scores,
    told,
)

PROTOCOL = {
    "support": "one random window of each clip",
    "query": "majority of the windows' answers; ties: the largest sum of scores",
}
_WINDOW_SEED = 0x317D03  # of the support's windows; the clips have the seed itself


def few_shot_windows(
    features_WF: Tensor,
    clip_W: Tensor,
    label_W: Tensor,
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    episodes: int = 10_000,
    classifiers: Sequence[str] = CLASSIFIERS,
    seed: int = 0,
) -> Iterator[tuple[str, float]]:
    """Yields what ``few_shot`` yields; shots and queries count clips.

    features_WF: (W, F); clip_W: (W,) number of each window's clip, ascending from 0, none left out;
    label_W: (W,) the class of its clip. Raises ValueError as ``few_shot`` does.
    """
    check_classifiers(classifiers)
    if not len(features_WF) == len(clip_W) == len(label_W):
        raise ValueError(
            f"few_shot_windows: expected as many features, clips and labels, received "
            f"{len(features_WF)}, {len(clip_W)}, {len(label_W)}"
        )
    count_N = torch.bincount(clip_W)
    first_N = count_N.cumsum(0) - count_N
    chosen_ECK = draw_episodes(
        label_W[first_N], ways=ways, samples=shots + queries, episodes=episodes, seed=seed
    )
    support_ES = draw_windows(chosen_ECK[:, :, :shots].flatten(1), first_N, count_N, seed=seed)
    query_EQ = chosen_ECK[:, :, shots:].flatten(1)
    # episodes with as many windows together: less padding
    order_E = count_N[query_EQ].sum(1).argsort()
    unit_WF = nnf.normalize(features_WF.float(), dim=1)
    with one_thread():
        parts = [
            vote(unit_WF, support_ES[some], query_EQ[some], first_N, count_N, ways, classifiers)
            for some in order_E.split(CHUNK)
        ]
    label_Q = torch.arange(ways).repeat_interleave(queries)
    for name in classifiers:
        yield from told(name, (torch.cat([p[name] for p in parts]) == label_Q).double().mean(1))


def draw_windows(clip_ES: Tensor, first_N: Tensor, count_N: Tensor, *, seed: int) -> Tensor:
    """(E, S): one window of each clip, all as likely."""
    generator = torch.Generator().manual_seed(seed ^ _WINDOW_SEED)
    unit_ES = torch.rand(clip_ES.shape, generator=generator, dtype=torch.float64)
    return first_N[clip_ES] + (unit_ES * count_N[clip_ES]).long()


def vote(
    unit_WF: Tensor,
    support_ES: Tensor,
    query_EQ: Tensor,
    first_N: Tensor,
    count_N: Tensor,
    ways: int,
    classifiers: Sequence[str],
) -> dict[str, Tensor]:
    """Of each readout (E, Q): the way that each query clip is given.

    support_ES: windows, sorted by way; query_EQ: clips; first_N, count_N: their windows.
    """
    slot_EP, window_EP, real_EP = side_by_side(query_EQ, first_N, count_N)
    found = scores(unit_WF, support_ES, window_EP, ways, classifiers)
    shape = (*query_EQ.shape, ways)
    slot_EPC = slot_EP[..., None].expand(-1, -1, ways)
    answers = {}
    for name, score_EPC in found.items():
        vote_EPC = nnf.one_hot(score_EPC.argmax(2), ways) * real_EP[..., None]
        votes_EQC = torch.zeros(shape, dtype=torch.long).scatter_add(1, slot_EPC, vote_EPC)
        real_EPC = score_EPC.double() * real_EP[..., None]
        sum_EQC = torch.zeros(shape, dtype=torch.float64).scatter_add(1, slot_EPC, real_EPC)
        first_EQC = votes_EQC == votes_EQC.amax(2, keepdim=True)
        answers[name] = sum_EQC.masked_fill(~first_EQC, -torch.inf).argmax(2)
    return answers


def side_by_side(
    query_EQ: Tensor, first_N: Tensor, count_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The windows of each episode's clips in a row: place of the clip, window, whether it counts.

    Episodes differ in the number of windows: the rows are padded with windows that do not count.
    """
    count_EQ = count_N[query_EQ]
    end_EQ = count_EQ.cumsum(1)
    place_EP = torch.arange(int(end_EQ[:, -1].max())).expand(len(query_EQ), -1).contiguous()
    slot_EP = torch.searchsorted(end_EQ, place_EP, right=True)
    real_EP = slot_EP < query_EQ.shape[1]
    slot_EP = slot_EP.clamp(max=query_EQ.shape[1] - 1)
    begin_EQ = first_N[query_EQ] - (end_EQ - count_EQ)
    window_EP = begin_EQ.gather(1, slot_EP) + place_EP
    return slot_EP, torch.where(real_EP, window_EP, 0), real_EP

"""What the claim on amortised invariances asks of the figures."""

from __future__ import annotations

import itertools

from benchmarks.claims.rows import Row, Values, at_least, at_most, figure, lower, mean_and_error

TITLE = "Amortised invariances"
PAPER = "Chavhan et al. 2023, arXiv:2302.12712 (its tables were not available to us)"
NOTES = """\
The best corner is the one of the trained three with the least error on 600 images of the train
split that no readout was fitted to; [0,0] is never trained, and its errors are in the record alone.

Images of 16 px. The amortised network is trained for three times the steps of a dedicated one
(3,000 and 1,000), so that each has seen a corner equally often. Task h is a small effect: at 32 px
and 1,000 steps (seed 0, before) [1,1] told it better than [0,1] did (.114 against .124; variance
.333), and an ordinary network to which h is never an augmentation had .136; at 16 px ordinary
networks had .147 without and .184 with it (seed 100, which is not scored). What is learned of the
curve's shape under [1,1] tells a linear readout much of h; the best corner is [1,1] in one seed.
Linear heads, through which invariance might reach the features sooner, gave .192 under [1,1].

Between the corners, where no vector is trained, the loss has hills: colour's cosines dip at .25. On
seed 100 a descent from 1/2, as the authors start, ended at [.65, .71] for G (.0154 against .0001 at
[1,0]) and, with batches of 1,024, at [0, 0] (.0008); it starts at the best of 1/2 and of the four
points half way to a corner now, which gave [.90, .27] and .00015. The bit of geometry hardly
matters to G (.0004 at [0,0], .0001 at [1,0]): its distance is mostly that bit's.
"""
CORNERS = ("00", "01", "10", "11")
GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
GROUPS = ("geometry", "colour")
TASKS = {"G": ("b_g",), "h": ("h",), "m and sigma": ("m", "sigma")}
"""Names of the targets of each task."""
NEEDS = {"G": 1, "h": 0}
"""The bit that must be 0 for the task, where there is one."""


def rows(figures: dict[str, Values]) -> list[Row]:
    """The issue's four lines on each task, and the counts and the quality of both generators."""
    found = []
    for task in TASKS:
        found.append(_distance(figures, task))
    for task in NEEDS:
        learned, default = figures[f"{task}/learned"], figures[f"{task}@11/full"]
        found.append(lower(f"{task}: learned below the default [1,1]", learned, default, errors=2))
    for task in TASKS:
        pairs = zip(figures[f"{task}/learned"], figures[f"{task}/dedicated"], strict=True)
        what = f"{task}: learned over a network dedicated to the best corner"
        found.append(at_most(what, [ours / other for ours, other in pairs], 1.1))
    for position, group in enumerate(GROUPS):
        by_bit = [figures[f"cosine/{position}/{bit}"] for bit in GRID]
        found.append(_rising(f"invariance to {group} by its bit, {GRID}", by_bit))
    return [*found, *_generators(figures)]


def _distance(figures: dict[str, Values], task: str) -> Row:
    """The farther bit's distance; beside it the vectors."""
    bits = [mean_and_error(figures[f"{task}/bit{k}"])[0] for k in (0, 1)]
    best = [mean_and_error(figures[f"{task}/best{k}"])[0] for k in (0, 1)]
    shown = "learned [{:.2f}, {:.2f}], best corner [{:.2g}, {:.2g}]".format(*bits, *best)
    return at_most(
        f"{task}: distance to the best corner; {shown}", figures[f"{task}/distance"], 0.2
    )


def _rising(what: str, by_bit: list[Values]) -> Row:
    means = [mean_and_error(values)[0] for values in by_bit]
    holds = all(a < b for a, b in itertools.pairwise(means))
    return Row(what, " < ".join(f"{mean:.3f}" for mean in means), "rising", holds)


def _generators(figures: dict[str, Values]) -> list[Row]:
    """The two kernel generators: sizes beside the kernels', errors at each trained corner."""
    plain, full, thin = (figures[f"{name}/count"] for name in ("ordinary", "full", "low-rank"))
    counts = f"{thin[0]:,.0f}; full {full[0]:,.0f}; ordinary kernels {plain[0]:,.0f}"
    factor = thin[0] / plain[0]
    found = [
        at_least("full generator: parameters over the kernels it makes",
                 [a / b for a, b in zip(full, plain, strict=True)], 32, paper="33"),
        Row("low-rank generator: its parameters", counts, "fewer than full", thin[0] < full[0]),
        Row("low-rank: over the kernels it makes", f"{factor:.3g}", "below 33", factor < 33),
    ]  # fmt: skip
    for task in TASKS:
        for corner in CORNERS[1:]:
            ours, theirs = figures[f"{task}@{corner}/low-rank"], figures[f"{task}@{corner}/full"]
            ratio = [a / b for a, b in zip(ours, theirs, strict=True)]
            shown = f"{figure(ours)} against {figure(theirs)}"
            bounded = at_most("", ratio, 1.1)
            what = f"low-rank against full: {task} at [{corner[0]},{corner[1]}]"
            found.append(Row(what, shown, "at most 1.1 of it", bounded.holds))
    return found

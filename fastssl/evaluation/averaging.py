"""Feature averaging: the mean feature of M augmented views of an image is read out.

    h(x) = 1/M sum_m f(t_m(x))        Foster et al. 2021 (arXiv:2010.09515), section 3.3

Not normalised, with M fresh draws of each image, of the train split as of the test split: averages
on the test side alone would shift the features under the readout.
"""

# shapes: N images, F features, M draws
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

PROTOCOL = {
    "averaged": "features of M augmented views, on the train and the test split",
    "features_scaled_by_norm": "no",
}


def averaging(
    features_of: Callable[[int], tuple[Tensor, Tensor]],
    readout: Callable[[Tensor, Tensor], Iterator[tuple[str, float]]],
    *,
    averages: Sequence[int] = (1, 5, 30),
) -> Iterator[tuple[str, float]]:
    """Yields ("METRIC@M", .) of the readout for each M, in rising order.

    features_of: draw m -> train and test features (N, F) of views drawn with that number.
    readout: train and test features -> its metrics. The M of one number are among the next one's.
    """
    wanted = sorted(set(averages))
    if not wanted or wanted[0] < 1:
        raise ValueError(f"averages: expected numbers of at least 1, received {list(averages)}")
    totals: tuple[Tensor, ...] = ()
    for draw in range(wanted[-1]):
        parts = tuple(part.double() for part in features_of(draw))
        totals = tuple(a + b for a, b in zip(totals, parts, strict=True)) if totals else parts
        if draw + 1 in wanted:
            train_NF, test_NF = (total / (draw + 1) for total in totals)
            for name, value in readout(train_NF, test_NF):
                yield f"{name}@{draw + 1}", value

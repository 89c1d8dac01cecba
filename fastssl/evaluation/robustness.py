"""Robustness: the score when what varies in the images is shifted or widened.

Two curves over the amount of the shift, of which 0 is what the readout expects:
  METRIC@SHIFT=AMOUNT        the readout is fitted anew, on shifted train images
  METRIC_fixed@SHIFT=AMOUNT  the readout is that of images that are not shifted
The first is that of Foster et al. 2021 (arXiv:2010.09515): does the information survive? The second
asks whether it stays where it was.
"""

# shapes: N train images, M test images, F features
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

Scores = Iterator[tuple[str, float]]
PROTOCOL = {
    "refit": "readout fitted to shifted train images, test images shifted alike",
    "fixed": "readout fitted to train images that are not shifted",
}


def robustness(
    features_of: Callable[[float | None], tuple[Tensor, Tensor]],
    fitted: Callable[[Tensor], Callable[[Tensor], Scores]],
    *,
    shift: str,
    amounts: Sequence[float],
) -> Scores:
    """Yields the two curves, in rising order of the amounts.

    features_of: an amount, or None for images that are not shifted -> train and test features.
    fitted: train features -> a function from test features to metrics.
    """
    if not amounts:
        raise ValueError("--amounts: expected one or more, received none")
    expected = fitted(features_of(None)[0])
    for amount in sorted(set(amounts)):
        train_NF, test_MF = features_of(amount)
        for name, value in fitted(train_NF)(test_MF):
            yield f"{name}@{shift}={amount:g}", value
        for name, value in expected(test_MF):
            yield f"{_fixed(name)}@{shift}={amount:g}", value


def _fixed(name: str) -> str:
    metric, slash, target = name.partition("/")
    return f"{metric}_fixed{slash}{target}"

"""What a representation costs and what it is worth: bits of each form of it, accuracy from each.

pixels    what the encoder is given
features  the encoder's floats, 32 bits each
code      the latent's code: hard bits, or a Gaussian's mean at 32 bits
sample    one draw from the posterior; its rate, KL(q(u|x) || p(u)) / ln 2 averaged over the
          train images, is the least that sending it can cost (Hinton and van Camp 1993)
"""

# shapes: N train images, M test images, F values
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

NATS_PER_BIT = math.log(2)
PROTOCOL = {
    "bits": "of one image: pixels 8 a value of the view, features 32 a value, code as packed, "
    "sample its KL from the prior on the train split",
    "ratio": "bits of the pixels over these",
    "sample": "one draw for each image, hard where the latent is discrete",
}
Readout = Callable[[Tensor, Tensor], Iterator[tuple[str, float]]]


class Form(NamedTuple):
    """One form of the images of both splits."""

    name: str
    bits: float  # of one image
    train_NF: Tensor
    test_MF: Tensor


def compression(forms: Sequence[Form], readout: Readout) -> Iterator[tuple[str, float]]:
    """Yields ("bits/NAME", .), ("ratio/NAME", .) and the readout's metrics as ("METRIC/NAME", .)
    of each form; the ratio is the first form's bits over these, infinite for none.

    readout: (train_NF, test_MF) to its metrics. ValueError for no form or less than 0 bits.
    """
    if not forms or min(form.bits for form in forms) < 0:
        received = [(form.name, form.bits) for form in forms]
        raise ValueError(f"compression: forms: expected some, of 0 bits or more, {received=}")
    for name, bits, train_NF, test_MF in forms:
        yield f"bits/{name}", bits
        yield f"ratio/{name}", forms[0].bits / bits if bits else math.inf
        for metric, value in readout(train_NF, test_MF):
            yield f"{metric}/{name}", value

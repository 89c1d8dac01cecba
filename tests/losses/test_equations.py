"""Every loss equals its paper in float64, values and all gradients, over drawn shapes."""

# shapes: N queries, K keys, M rows, D embedding
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastssl import losses
from fastssl.losses import Options
from tests.losses import papers

TOLERANCE = 1e-10
TAUS = st.sampled_from([0.01, 0.03, 0.1, 0.5, 1.0, 10.0, -0.5, -0.05])
MILD_TAUS = st.sampled_from([0.05, 0.2, 1.0, 10.0])  # the papers exponentiate without a shift
draws = settings(max_examples=25, deadline=None, derandomize=True)


def rows(seed: int, *shapes: tuple[int, ...], alike: float = 1.0) -> list[Tensor]:
    """Leaves whose first rows resemble each other by ``alike``."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    base = draw((max(shape[0] for shape in shapes), shapes[0][-1]))
    return [
        (alike * (base[: s[0]] if len(s) == 2 else base[: s[0], None]) + draw(s)).requires_grad_()
        for s in shapes
    ]


def drawn_ids(seed: int, low: int, high: int, num: int) -> Tensor:
    return torch.randint(low, high, (num,), generator=torch.Generator().manual_seed(seed))


def unit_queue(seed: int, num_rows: int, width: int) -> Tensor:
    return F.normalize(rows(seed + 1, (num_rows, width))[0].detach())


def learnt(tau: float) -> Tensor:
    return torch.tensor(tau, dtype=torch.float64, requires_grad=True)


def agree(ours_N: Tensor, truth_N: Tensor, inputs: list[Tensor]) -> None:
    """Values, and the gradients of a weighted sum with respect to every input."""
    assert ours_N.shape == truth_N.shape
    scale = max(1.0, truth_N.abs().max().item())
    assert (ours_N - truth_N).abs().max() <= TOLERANCE * scale
    weight_N = torch.linspace(0.5, 1.5, len(truth_N), dtype=torch.float64)
    found = torch.autograd.grad((ours_N * weight_N).sum(), inputs, allow_unused=True)
    expected = torch.autograd.grad((truth_N * weight_N).sum(), inputs, allow_unused=True)
    for got, truth in zip(found, expected, strict=True):
        truth = torch.zeros_like(got) if truth is None else truth
        size = max(1.0, truth.abs().max().item())
        assert (got - truth).abs().max() <= TOLERANCE * size


seeds, sizes, widths = st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 7)
optional_options = st.sampled_from(
    [{}, {"margin": 0.3}, {"smoothing": 0.2}, {"margin": -0.1, "smoothing": 0.1}]
)
WEIGHTINGS = [
    {"tau_plus": 0.1}, {"beta": 1.0}, {"tau_plus": 0.05, "beta": 0.5}, {"tau_plus": 0.6},
]  # fmt: skip


@draws
@given(seeds, sizes, st.integers(0, 9), widths, TAUS, optional_options)
def test_info_nce_of_rectangular_pairs(seed, num, more, width, tau, options):
    q, k = rows(seed, (num, width), (num + more, width))
    tau = learnt(tau)
    ours = losses.info_nce(q, k, tau, options=Options(**options), reduction="none")
    agree(ours, papers.info_nce(q, k, tau, **options), [q, k, tau])


@draws
@given(seeds, sizes, widths, TAUS, optional_options, st.booleans())
def test_info_nce_in_both_directions(seed, num, width, tau, options, with_ids):
    q, k = rows(seed, (num, width), (num, width))
    tau = learnt(tau)
    ids = drawn_ids(seed, 0, 4, num) if with_ids else None
    ours = losses.info_nce(
        q, k, tau, symmetric=True, sample_ids=ids, options=Options(**options), reduction="none"
    )
    truth = papers.info_nce(q, k, tau, symmetric=True, sample_ids=ids, **options)
    agree(ours, truth, [q, k, tau])


@draws
@given(seeds, sizes, sizes, widths, st.integers(1, 4), TAUS, optional_options, st.booleans())
def test_info_nce_with_positives_hard_negatives_and_ids(
    seed, num, num_keys, width, hard, tau, options, with_ids
):
    q, k, h = rows(seed, (num, width), (num_keys, width), (num, hard, width))
    tau = learnt(tau)
    index = drawn_ids(seed, 0, num_keys, num)
    ids = drawn_ids(seed + 1, 0, 4, num_keys) if with_ids else None
    given_arguments = {"positives": index, "hard_negatives": h, "sample_ids": ids}
    ours = losses.info_nce(
        q, k, tau, **given_arguments, options=Options(**options), reduction="none"
    )
    agree(ours, papers.info_nce(q, k, tau, **given_arguments, **options), [q, k, h, tau])


@pytest.mark.parametrize("options", WEIGHTINGS, ids=str)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(seeds, st.integers(2, 9), widths, MILD_TAUS, st.booleans())
def test_debiased_and_hard_negative_weighting(options, seed, num, width, tau, symmetric):
    q, k = rows(seed, (num, width), (num, width), alike=0.5)
    tau = learnt(tau)
    chosen = Options(**options)
    ours = losses.info_nce(q, k, tau, symmetric=symmetric, options=chosen, reduction="none")
    agree(ours, papers.info_nce(q, k, tau, symmetric=symmetric, **options), [q, k, tau])
    ours = losses.NTXentLoss(tau, options=chosen, reduction="none")(q, k)
    agree(ours, papers.nt_xent(q, k, tau, **options), [q, k, tau])


@draws
@given(seeds, sizes, widths, TAUS, optional_options, st.booleans())
def test_nt_xent_with_options(seed, num, width, tau, options, with_ids):
    z0, z1 = rows(seed, (num, width), (num, width))
    tau = learnt(tau)
    ids = drawn_ids(seed, 0, 4, num) if with_ids else None
    loss_fn = losses.NTXentLoss(tau, options=Options(**options), reduction="none")
    agree(
        loss_fn(z0, z1, sample_ids=ids),
        papers.nt_xent(z0, z1, tau, sample_ids=ids, **options),
        [z0, z1, tau],
    )


@draws
@given(
    seeds, sizes, st.integers(1, 20), widths, TAUS, st.booleans(),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_moco(seed, num, num_rows, width, tau, key_learns, dtype):
    q, k = rows(seed, (num, width), (num, width))
    queue = unit_queue(seed, num_rows, width).to(dtype)
    k = k if key_learns else k.detach()
    tau = learnt(tau)
    inputs = [q, k, tau] if key_learns else [q, tau]
    ours = losses.moco_loss(q, k, queue, tau, reduction="none")
    agree(ours, papers.moco(q, k, queue, tau), inputs)


@draws
@given(seeds, sizes, st.integers(1, 20), widths, MILD_TAUS, st.sampled_from(WEIGHTINGS))
def test_moco_with_weighted_negatives(seed, num, num_rows, width, tau, options):
    q, k = rows(seed, (num, width), (num, width), alike=0.5)
    queue = unit_queue(seed, num_rows, width)
    tau = learnt(tau)
    ours = losses.moco_loss(q, k, queue, tau, options=Options(**options), reduction="none")
    agree(ours, papers.moco(q, k, queue, tau, **options), [q, k, tau])


@draws
@given(seeds, sizes, st.integers(1, 4), widths, TAUS)
def test_cissl(seed, num, num_views, width, tau):
    a, b = rows(seed, (num * num_views, width), (num * num_views, width))
    tau = learnt(tau)
    ours = losses.cissl_loss(a, b, tau, num_views=num_views, reduction="none")
    agree(ours, papers.cissl(a, b, tau, num_views=num_views), [a, b, tau])


@draws
@given(
    seeds, sizes, widths, st.sampled_from([0.1, 1.0, 14.3, 100.0, -2.0]),
    st.sampled_from([0.0, 0.1]),
)  # fmt: skip
def test_clip(seed, num, width, scale, smoothing):
    image, text = rows(seed, (num, width), (num, width))
    scale = learnt(scale)
    options = Options(smoothing=smoothing)
    ours = losses.clip_loss(image, text, scale, options=options, reduction="none")
    agree(ours, papers.clip(image, text, scale, smoothing=smoothing), [image, text, scale])


@pytest.mark.parametrize("form", ["out", "in"])
@draws
@given(seeds, st.integers(1, 12), st.integers(1, 12), widths, TAUS)
def test_sup_con(form, seed, num, num_labels, width, tau):
    (z,) = rows(seed, (num, width))
    labels = drawn_ids(seed, -3, num_labels - 3, num)
    tau = learnt(tau)
    ours = losses.SupConLoss(tau, form=form, reduction="none")(z, labels)
    agree(ours, papers.sup_con(z, labels, tau, form=form), [z, tau])


@draws
@given(seeds, sizes, st.integers(2, 4), widths, TAUS)
def test_sup_con_of_views(seed, num, num_views, width, tau):
    (z,) = rows(seed, (num * num_views, width))
    tau = learnt(tau)
    views = z.unflatten(0, (num, num_views))
    labels = torch.arange(num).repeat_interleave(num_views)
    for form, function in (("out", losses.sup_con_out), ("in", losses.sup_con_in)):
        ours = function(views, None, tau, reduction="none")
        agree(ours, papers.sup_con(z, labels, tau, form=form), [z, tau])


@draws
@given(seeds, st.lists(st.integers(1, 5), min_size=1, max_size=4), widths, TAUS)
def test_multi_crop_nt_xent_with_ids(seed, sizes_of_crops, width, tau):
    crops = rows(seed, *[(size, width) for size in sizes_of_crops])
    ids = [drawn_ids(seed + size, 0, 5, size) for size in sizes_of_crops]
    tau = learnt(tau)
    ours = losses.multi_crop_ntxent(crops, tau, ids=ids, reduction="none")
    truth = papers.sup_con(torch.cat(crops), torch.cat(ids), tau, form="out")
    agree(ours, truth, [*crops, tau])


@draws
@given(seeds, st.integers(2, 9), widths, TAUS, st.sampled_from([None, 0.5, 2.0]))
def test_dcl_and_dclw(seed, num, width, tau, sigma):
    z0, z1 = rows(seed, (num, width), (num, width))
    tau = learnt(tau)
    if sigma is None:
        ours = losses.dcl_loss(z0, z1, tau, reduction="none")
    else:
        ours = losses.dclw_loss(z0, z1, tau, sigma=sigma, reduction="none")
    agree(ours, papers.dcl(z0, z1, tau, sigma=sigma), [z0, z1, tau])

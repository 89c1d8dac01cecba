"""What tests and the page of features share about the losses: how to call each, well and badly."""

# shapes: N rows, K keys, D embedding
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl import losses
from fastssl.losses.options import Options

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
WEIGHTED = Options(tau_plus=0.1, beta=0.5)
SHIFTED = Options(margin=0.2, smoothing=0.1)


@dataclass(frozen=True)
class Case:
    """One way to call one loss.

    loss: the name its refusals begin with. names: of the arguments that are embeddings.
    call(embeddings, temperature, reduction, group): the function; ``temperature`` is the logit
    scale where the loss takes that. with_metrics(embeddings, temperature): the module's method.
    sizes: rows of each embedding. without: promises it does not keep, and why.
    """

    loss: str
    variant: str
    names: tuple[str, ...]
    call: Callable[..., Tensor]
    sizes: tuple[int, ...] = (6, 6)
    knob: str = "temperature"
    with_metrics: Callable[..., tuple] | None = None
    paper: str = ""
    without: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """For reports."""
        return f"{self.loss} {self.variant}".strip()

    def embeddings(self, dtype: torch.dtype = torch.float64, width: int = 5) -> list[Tensor]:
        """Deterministic values; rows of one index are alike in every embedding."""
        generator = torch.Generator().manual_seed(len(self.name))
        base_ND = torch.randn(max(self.sizes), width, generator=generator, dtype=torch.float64)
        return [
            (base_ND[:n] + torch.randn(n, width, generator=generator, dtype=torch.float64)).to(
                dtype
            )
            for n in self.sizes
        ]


def queue(dtype: torch.dtype = torch.float64, num_rows: int = 11, width: int = 5) -> Tensor:
    """Unit rows."""
    generator = torch.Generator().manual_seed(7)
    rows_KD = torch.randn(num_rows, width, generator=generator, dtype=torch.float64)
    return F.normalize(rows_KD).to(dtype)


POSITIVES = torch.tensor([3, 0, 8, 3])
KEY_IDS = torch.tensor([4, 4, 2, 9, 2, 2, 0, 9, 4])
PAIR_IDS = torch.tensor([0, 1, 0, 2, 3, 1])
LABELS = torch.tensor([5, 5, 0, 5, 0, -3, 2])
CROP_IDS = (torch.tensor([3, 1, 0, 7]), torch.tensor([1, 3, 9]), torch.tensor([3, 0]))


NO_MAXIMUM = (("top-1", "its pass keeps sums over pairs and no largest logit"),)
WEIGHT = "its weight has no gradient by definition, which finite differences see"
STOPPED = (("gradcheck", WEIGHT), ("double backward", WEIGHT), ("jvp", WEIGHT))


def _info_nce(variant: str, sizes: tuple[int, ...] = (4, 9), **settings) -> Case:
    names = ("queries", "keys", "hard_negatives")[: len(sizes)]

    def arguments(embeddings):
        if len(embeddings) < 3:
            return embeddings, settings
        hard_NHD = embeddings[2].unflatten(0, (embeddings[0].shape[0], -1))
        return embeddings[:2], {**settings, "hard_negatives": hard_NHD}

    def call(embeddings, temperature, reduction="mean", group=None):
        rows, more = arguments(embeddings)
        queries, keys = rows
        return losses.info_nce(queries, keys, temperature, reduction=reduction, group=group, **more)

    def with_metrics(embeddings, temperature):
        rows, more = arguments(embeddings)
        built = {name: more[name] for name in ("symmetric", "options") if name in more}
        more = {name: value for name, value in more.items() if name not in built}
        return losses.InfoNCELoss(temperature, **built).with_metrics(*rows, **more)

    paper = "van den Oord et al. 2018, arXiv:1807.03748"
    return Case("info_nce", variant, names, call, sizes, with_metrics=with_metrics, paper=paper)


def _two_views(
    loss: str, module, variant: str, paper: str, sample_ids=None, without=(), **settings
) -> Case:
    ids = {} if sample_ids is None else {"sample_ids": sample_ids}

    def call(embeddings, temperature, reduction="mean", group=None):
        return module(temperature, reduction=reduction, group=group, **settings)(*embeddings, **ids)

    def with_metrics(embeddings, temperature):
        return module(temperature, **settings).with_metrics(*embeddings, **ids)

    names = ("view0", "view1")
    return Case(loss, variant, names, call, with_metrics=with_metrics, paper=paper, without=without)


def _plain_nt_xent() -> Case:
    """The operator of its own, whose refusals begin with its name."""

    def call(embeddings, temperature, reduction="mean", group=None):
        return losses.NTXentLoss(temperature, reduction=reduction, group=group)(*embeddings)

    def with_metrics(embeddings, temperature):
        return losses.NTXentLoss(temperature).with_metrics(*embeddings)

    names = ("views", "views")
    return Case("ntxent", "", names, call, with_metrics=with_metrics, paper=_SIMCLR)


def _moco(variant: str, rows_KD: Tensor, options: Options | None = None) -> Case:
    def call(embeddings, temperature, reduction="mean", group=None):
        query, key = embeddings
        return losses.moco_loss(
            query, key, rows_KD, temperature, options=options, reduction=reduction, group=group
        )

    def with_metrics(embeddings, temperature):
        query, key = embeddings
        return losses.MoCoLoss(temperature, options=options).with_metrics(query, key, rows_KD)

    paper = "He et al. 2020, arXiv:1911.05722"
    names = ("query", "key")
    return Case("moco_loss", variant, names, call, with_metrics=with_metrics, paper=paper)


def _cissl(num_views: int) -> Case:
    def call(embeddings, temperature, reduction="mean", group=None):
        student, teacher = embeddings
        return losses.cissl_loss(
            student, teacher, temperature, num_views=num_views, reduction=reduction, group=group
        )

    def with_metrics(embeddings, temperature):
        return losses.CISSLLoss(temperature, num_views=num_views).with_metrics(*embeddings)

    names, paper = ("student", "teacher"), "Dubois et al. 2022, arXiv:2209.06235"
    variant = f"{num_views} views"
    return Case("cissl_loss", variant, names, call, with_metrics=with_metrics, paper=paper)


def _clip(variant: str, **settings) -> Case:
    def call(embeddings, scale, reduction="mean", group=None):
        image, text = embeddings
        return losses.clip_loss(image, text, scale, reduction=reduction, group=group, **settings)

    def with_metrics(embeddings, scale):
        return losses.CLIPLoss(float(scale), **settings).with_metrics(*embeddings)

    names, paper = ("image", "text"), "Radford et al. 2021, arXiv:2103.00020"
    return Case(
        "clip_loss", variant, names, call, knob="logit_scale", with_metrics=with_metrics,
        paper=paper,
    )  # fmt: skip


def _siglip() -> Case:
    def call(embeddings, scale, reduction="mean", group=None):
        image, text = embeddings
        return losses.siglip_loss(image, text, scale, -2.0, reduction=reduction, group=group)

    def with_metrics(embeddings, scale):
        return losses.SigLIPLoss(float(scale), -2.0).with_metrics(*embeddings)

    return Case(
        "siglip_loss", "", ("image", "text"), call, knob="scale", with_metrics=with_metrics,
        paper="Zhai et al. 2023, arXiv:2303.15343", without=NO_MAXIMUM,
    )  # fmt: skip


def _sup_con(form: str, function, labels: Tensor | None, views: int = 1) -> Case:
    def shaped(embeddings):
        return embeddings[0] if views == 1 else embeddings[0].unflatten(0, (-1, views))

    def call(embeddings, temperature, reduction="mean", group=None):
        return function(shaped(embeddings), labels, temperature, reduction=reduction, group=group)

    def with_metrics(embeddings, temperature):
        module = losses.SupConLoss(temperature, form=form)
        return module.with_metrics(shaped(embeddings), labels)

    variant = "labels" if views == 1 else f"{views} views"
    sizes = (7 if labels is not None else 3 * views,)
    paper = "Khosla et al. 2020, arXiv:2004.11362"
    return Case(
        function.__name__, variant, ("embeddings",), call, sizes, with_metrics=with_metrics,
        paper=paper,
    )  # fmt: skip


def _multi_crop() -> Case:
    def call(embeddings, temperature, reduction="mean", group=None):
        return losses.multi_crop_ntxent(
            list(embeddings), temperature, ids=CROP_IDS, reduction=reduction, group=group
        )

    def with_metrics(embeddings, temperature):
        return losses.MultiCropNTXentLoss(temperature).with_metrics(*embeddings, ids=CROP_IDS)

    names = ("crops[0]", "crops[1]", "crops[2]")
    return Case(
        "multi_crop_ntxent", "ids", names, call, (4, 3, 2), with_metrics=with_metrics,
        paper="Chen et al. 2020, arXiv:2002.05709",
    )  # fmt: skip


_SIMCLR = "Chen et al. 2020, arXiv:2002.05709"
_DCL = "Yeh et al. 2022, arXiv:2110.06848"
_nt_xent = partial(_two_views, "NTXentLoss", losses.NTXentLoss)

CASES: tuple[Case, ...] = (
    _plain_nt_xent(),
    _nt_xent("tau_plus, beta", _SIMCLR + "; 2007.00224; 2010.04592", options=WEIGHTED),
    _nt_xent("margin, smoothing", _SIMCLR, options=SHIFTED),
    _nt_xent("sample_ids", _SIMCLR, sample_ids=PAIR_IDS),
    _info_nce("rectangular"),
    _info_nce("symmetric", (6, 6), symmetric=True),
    _info_nce("positives", positives=POSITIVES),
    _info_nce("hard_negatives", (4, 9, 12)),
    _info_nce("sample_ids", sample_ids=KEY_IDS),
    _info_nce("tau_plus, beta, hard_negatives", (4, 9, 12), options=WEIGHTED),
    _info_nce("symmetric, margin, smoothing", (6, 6), symmetric=True, options=SHIFTED),
    _moco("", queue()),
    _moco("bfloat16 queue", queue(torch.bfloat16)),
    _moco("tau_plus, beta", queue(), WEIGHTED),
    _cissl(2),
    _cissl(3),
    _clip(""),
    _clip("smoothing", options=Options(smoothing=0.1)),
    _siglip(),
    _sup_con("out", losses.sup_con_out, LABELS),
    _sup_con("out", losses.sup_con_out, None, views=3),
    _sup_con("in", losses.sup_con_in, LABELS),
    _multi_crop(),
    _two_views("dcl_loss", losses.DCLLoss, "", _DCL),
    _two_views("dclw_loss", losses.DCLWLoss, "", _DCL, without=STOPPED),
)


@dataclass(frozen=True)
class BadCall:
    """A call that must raise ValueError, and what its message must name."""

    name: str
    call: Callable[[], object]
    mentions: tuple[str, ...]


def bad_calls() -> Iterator[BadCall]:
    """The wrong calls that every loss refuses, then those of each loss."""
    for case in CASES:
        yield from bad_everywhere(case)
    wrong = [*_bad_info_nce(), *_bad_others(), *_bad_settings()]
    for position, (call, mentions) in enumerate(wrong):
        yield BadCall(f"{position} {mentions[0]} {mentions[-1]}", call, mentions)


def bad_everywhere(case: Case) -> Iterator[BadCall]:
    """Embeddings and temperatures that no loss takes, one call each."""
    good = case.embeddings(torch.float32)
    unshaped = "hard_negatives" not in case.names and case.name != "sup_con_out 3 views"
    for position, name in enumerate(case.names if unshaped else ()):
        h_ND = good[position]
        wrong = {
            "no tensor": None, "integers": h_ND.long(), "one dimension": h_ND[0],
            "no features": h_ND[:, :0], "four dimensions": h_ND[None, None],
        }  # fmt: skip
        if position:
            wrong |= {
                "another width": h_ND[:, :3], "another dtype": h_ND.double(),
                "another device": h_ND.to("meta"),
            }  # fmt: skip
        for kind, value in wrong.items():
            changed = [*good[:position], value, *good[position + 1 :]]
            call = partial(case.call, changed, 0.1)
            yield BadCall(f"{case.name}: {name}, {kind}", call, (case.loss, name))
    for value in (0.0, float("nan"), float("inf"), torch.ones(2), torch.tensor(1), "0.1", True):
        call = partial(case.call, good, value)
        yield BadCall(f"{case.name}: {case.knob} {value}", call, (case.loss, case.knob))


Wrong = list[tuple[Callable[[], object], tuple[str, ...]]]


def _bad_info_nce() -> Wrong:
    z = torch.randn(6, 5)
    nce, ids = partial(losses.info_nce, z), torch.arange(6)
    return [
        (partial(nce, z[:4]), ("keys", "(4, 5)")),
        (partial(nce, torch.randn(8, 5), symmetric=True), ("keys", "symmetric")),
        (partial(nce, z, symmetric=True, positives=ids), ("positives", "symmetric")),
        (partial(nce, z, positives=ids + 1), ("positives", "[1, 6]")),
        (partial(nce, z, positives=ids - 1), ("positives", "[-1, 4]")),
        (partial(nce, z, positives=ids[:3]), ("positives", "(3,)")),
        (partial(nce, z, positives=ids.float()), ("positives", "float32")),
        (partial(nce, z, hard_negatives=z), ("hard_negatives", "3-D")),
        (partial(nce, z, hard_negatives=z[:3, None]), ("hard_negatives", "(3, 1, 5)")),
        (partial(nce, z, hard_negatives=z[:, None, :2]), ("hard_negatives", "(6, 2)")),
        (partial(nce, z, hard_negatives=z[:, None], symmetric=True), ("hard_negatives",)),
        (partial(nce, z, sample_ids=ids[:2]), ("sample_ids", "(2,)")),
        (partial(nce, z, reduction="avg"), ("reduction", "'avg'")),
    ]


def _bad_others() -> Wrong:
    z, ids = torch.randn(6, 5), torch.arange(6)
    once: Any = iter([z, z])
    return [
        (partial(losses.moco_loss, z, z[:3], z), ("key", "(3, 5)")),
        (partial(losses.moco_loss, z, z, z[:, :2]), ("queue", "(6, 2)")),
        (partial(losses.moco_loss, z, z, z[:0]), ("queue", "(0, 5)")),
        (partial(losses.moco_loss, z, z, z.long()), ("queue", "int64")),
        (partial(losses.moco_loss, z, z, z.to("meta")), ("queue", "meta")),
        (partial(losses.moco_loss, z, z, None), ("queue", "NoneType")),
        (partial(losses.moco_loss, z, z, z.clone().requires_grad_()), ("queue", "gradient")),
        (partial(losses.cissl_loss, z[:5], z[:5]), ("student", "num_views")),
        (partial(losses.cissl_loss, z, z[:4]), ("teacher", "(4, 5)")),
        (partial(losses.cissl_loss, z, z, num_views=0), ("num_views", "0")),
        (partial(losses.clip_loss, z, z[:4]), ("text", "(4, 5)")),
        (partial(losses.siglip_loss, z, z[:4]), ("text", "(4, 5)")),
        (partial(losses.siglip_loss, z, z, bias=float("nan")), ("bias", "nan")),
        (partial(losses.siglip_loss, z, z, bias=torch.ones(2)), ("bias", "(2,)")),
        (partial(losses.siglip_loss, z, z, reduction="avg"), ("reduction", "'avg'")),
        (partial(losses.sup_con_out, z), ("labels", "None")),
        (partial(losses.sup_con_in, z, ids[:4]), ("labels", "(4,)")),
        (partial(losses.sup_con_in, z, ids.double()), ("labels", "float64")),
        (partial(losses.multi_crop_ntxent, [z, z[:2]], ids=[ids]), ("ids", "2")),
        (partial(losses.multi_crop_ntxent, [z, z], ids=[ids, ids[:2]]), ("ids[1]", "(2,)")),
        (partial(losses.multi_crop_ntxent, z), ("crops", "Tensor")),
        (partial(losses.multi_crop_ntxent, once), ("multi_crop_ntxent: crops", "iterator")),
        (partial(losses.multi_crop_ntxent, [z, z[:2]]), ("multi_crop_ntxent: ids", "[6, 2]")),
        (partial(losses.multi_crop_ntxent, [z, z], 0.0), ("multi_crop_ntxent: temperature",)),
        (partial(losses.dcl_loss, z[:1], z[:1]), ("view0", "at least 2")),
        (partial(losses.dclw_loss, z, z, sigma=0.0), ("sigma", "0.0")),
        (partial(losses.NTXentLoss(options=WEIGHTED).forward, z, z, z), ("views", "3")),
    ]


def _bad_settings() -> Wrong:
    text: Any = "x"
    half: Any = 8.5
    mapping: Any = {"beta": 1}
    return [
        (partial(losses.CLIPLoss, 0.0), ("scale", "0.0")),
        (partial(losses.CLIPLoss, max_scale=1.0), ("max_scale", "1.0")),
        (partial(losses.CLIPLoss, 200.0), ("CLIPLoss: scale", "100 unless given", "200.0")),
        (partial(losses.CLIPLoss, max_scale=text), ("CLIPLoss: max_scale", "'x'")),
        (partial(losses.SigLIPLoss, scale=-1.0), ("scale", "-1.0")),
        (partial(losses.SigLIPLoss, bias=float("nan")), ("SigLIPLoss: bias", "nan")),
        (partial(losses.DISSLLoss, maximality=float("nan")), ("DISSLLoss: maximality", "nan")),
        (partial(losses.DISSLLoss, maximality=text), ("DISSLLoss: maximality", "'x'")),
        (partial(losses.DINOLoss, half), ("DINOLoss: num_outputs", "8.5")),
        (partial(losses.sinkhorn, torch.ones(2, 3), iterations=half), ("iterations", "8.5")),
        (partial(losses.sinkhorn, torch.ones(2, 3), epsilon=text), ("sinkhorn: epsilon", "'x'")),
        (
            partial(
                losses.SwAVLoss().forward,
                [torch.ones(2, 3)] * 2,
                queue_scores=[torch.ones(4, 5)] * 2,
            ),
            ("SwAVLoss: queue_scores", "(Q, 3)", "(4, 5)"),
        ),
        *(
            (partial(module, options=mapping), (f"{module.__name__}: options", "dict"))
            for module in (losses.InfoNCELoss, losses.MoCoLoss, losses.NTXentLoss, losses.CLIPLoss)
        ),
        (partial(losses.SupConLoss, form="both"), ("form", "'both'")),
        (partial(losses.DCLWLoss, sigma=float("nan")), ("sigma", "nan")),
        (partial(Options, margin=0.1, beta=1.0), ("beta", "margin")),
        (partial(Options, smoothing=0.1, tau_plus=0.1), ("tau_plus", "smoothing")),
        (partial(Options, tau_plus=1.0), ("tau_plus", "1.0")),
        (partial(Options, beta=-0.1), ("beta", "-0.1")),
        (partial(Options, smoothing=True), ("smoothing", "bool")),
    ]

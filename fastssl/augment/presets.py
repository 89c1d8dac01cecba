"""Published policies by name. Each docstring says where its numbers come from.

``image_size`` is the side of the (large) views in pixels. Under 64 px most papers drop the blur and
halve the jitter, as SimCLR's appendix B.9 does for CIFAR; where a preset does, it says so. Numbers
marked "ours" are not published.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from itertools import product

from fastssl.augment.policy import CIFAR10, IMAGENET, Corner, Group, Policy, Ranges, alike, reach
from fastssl.kernels.augment.settings import Settings

SMALL = 64  # from this side on the papers' large-image numbers hold


def simclr(image_size: int, num_views: int = 2) -> Policy:
    """SimCLR (Chen et al. 2020, arXiv:2002.05709), appendix A, strength 1.

    Crop area .08-1, ratio 3/4-4/3; flip .5; jitter .8 of +-(.8, .8, .8, .2) in random order, each
    step clamped (torchvision's); grey .2; blur .5 with sigma .1-2 in a window of a tenth of the
    side. Under 64 px: strength 1/2 and no blur (B.9). The resize is bilinear as in torchvision.
    """
    settings = Settings(blur_window=tenth(image_size), **IMAGENET)
    group = Group(size=image_size, num_views=num_views, settings=settings)
    return alike("simclr", _simclr_ranges(image_size), group)


def _simclr_ranges(image_size: int) -> Ranges:
    if image_size < SMALL:
        return Ranges(jitter=0.8, **reach(0.4, 0.4, 0.4, 0.1), gray=0.2)
    return Ranges(jitter=0.8, **reach(0.8, 0.8, 0.8, 0.2), gray=0.2, blur=0.5)


def mocov2(image_size: int, num_views: int = 2) -> Policy:
    """MoCo v2 (Chen et al. 2020, arXiv:2003.04297) and its public code.

    Crop area .2-1; flip .5; jitter .8 of +-(.4, .4, .4, .1); grey .2; blur .5 with sigma .1-2, not
    cut by the side, hence 13 px = 3 sigma to each side. Under 64 px no blur (ours, as SimCLR B.9).
    """
    blur = 0.5 if image_size >= SMALL else 0.0
    ranges = Ranges(scale=(0.2, 1.0), jitter=0.8, **reach(0.4, 0.4, 0.4, 0.1), gray=0.2, blur=blur)
    settings = Settings(blur_window=13, **IMAGENET)
    return alike("mocov2", ranges, Group(size=image_size, num_views=num_views, settings=settings))


def invclr(image_size: int, num_views: int = 2) -> Policy:
    """InvCLR on CIFAR (Foster et al. 2021, arXiv:2010.09515), after its public code.

    Outside: crop area .08-1 and flip .5. Then jitter .8 of +-(.4, .4, .4, .1) in the fixed order
    brightness, contrast, saturation, hue (a YIQ rotation, not clamped), whose four values are the
    differentiable parameters; grey .2; CIFAR-10's mean and deviation. Their crop is Lanczos, which
    the operator lacks: bicubic here.
    """
    ranges = Ranges(jitter=0.8, **reach(0.4, 0.4, 0.4, 0.1), jitter_order="fixed", gray=0.2)
    settings = Settings(interpolation="bicubic", hue="yiq", **CIFAR10)
    group = Group(size=image_size, num_views=num_views, settings=settings)
    return alike("invclr", ranges, group, alpha=("brightness", "contrast", "saturation", "hue"))


def swav(image_size: int, num_views: int = 2) -> Policy:
    """SwAV's multi-crop (Caron et al. 2020, arXiv:2006.09882, and its public code).

    ``num_views`` = 2 views of 224 px with crop area .14-1, then 6 of 96 px with .05-.14; flip .5,
    jitter .8 of +-(.8, .8, .8, .2), grey .2, blur .5 with sigma .1-2. Other sides keep the ratio 96
    to 224, rounded to even (ours); under 64 px strength 1/2 and no blur (as SimCLR B.9).
    """
    small = max(8, 2 * round(image_size * 96 / 224 / 2))
    settings = Settings(blur_window=min(13, 2 * ((small - 1) // 2) - 1), **IMAGENET)
    colours = _simclr_ranges(image_size)
    large_views = (replace(colours, scale=(0.14, 1.0)),) * num_views
    small_views = (replace(colours, scale=(0.05, 0.14)),) * 6
    return Policy(
        name="swav",
        groups=(
            Group(size=image_size, num_views=num_views, settings=settings),
            Group(size=small, num_views=6, settings=settings),
        ),
        corners=(Corner(views=large_views + small_views),),
    )


def dissl(image_size: int, num_views: int = 2, *, strength: float = 1.0) -> Policy:
    """CISSL and DISSL (Dubois et al. 2022, arXiv:2209.06235) on TinyImageNet, after their code.

    Crop area .2-1 (bicubic); flip .5; jitter .8 of +-(.4, .4, .4, .1); grey .1; no blur. Strength s
    multiplies the jitter and the grey and divides the least crop area. Under 50 px (CIFAR) the
    jitter is +-(.2, .2, .2, .05). Above 64 px their ImageNet numbers: SimCLR's, bilinear.
    """
    if strength <= 0:
        raise ValueError(f"dissl: strength must be positive, received {strength:g}")
    if image_size > 64:
        ranges = _simclr_ranges(image_size)
        least, gray, by = 0.08, 0.2, (0.8, 0.8, 0.8, 0.2)
    else:
        ranges, least, gray = Ranges(jitter=0.8), 0.2, 0.1
        by = (0.2, 0.2, 0.2, 0.05) if image_size < 50 else (0.4, 0.4, 0.4, 0.1)
    b, c, s, h = (value * strength for value in by)
    jitter = reach(b, c, s, min(0.5, h))
    scale = (min(1.0, least / strength), 1.0)
    ranges = replace(ranges, scale=scale, gray=min(1.0, gray * strength), **jitter)
    filters = "bilinear" if image_size > 64 else "bicubic"
    settings = Settings(interpolation=filters, blur_window=tenth(image_size), **IMAGENET)
    return alike("dissl", ranges, Group(size=image_size, num_views=num_views, settings=settings))


def dissl_coarse(image_size: int, num_views: int = 2) -> Policy:
    """DISSL's coarser augmentations: strength 2 and blur .5 in a window of 7 px.

    Their blur's sigma is not known to us: .1-2, torchvision's default, is a choice of ours.
    """
    policy = dissl(image_size, num_views, strength=2.0)
    group = policy.groups[0]
    window = max(1, min(7, 2 * ((image_size - 1) // 2) - 1))
    group = replace(group, settings=replace(group.settings, blur_window=window))
    return alike("dissl-coarse", replace(policy.corners[0].views[0], blur=0.5), group)


def byol(image_size: int, num_views: int = 2) -> Policy:
    """BYOL's pair (Grill et al. 2020, arXiv:2006.07733, table 6): views from T and T' in turn.

    T: blur 1, no solarize; T': blur .1, solarize .2. Both: crop area .08-1, bicubic; flip .5;
    jitter .8 of +-(.4, .4, .2, .1); grey .2; sigma .1-2 in a window of a tenth of the side (23 of
    224); solarize from 1/2 on. Under 64 px: half the jitter, no blur (ours, as SimCLR B.9).
    """
    return _byol("byol", image_size, num_views, (0, 1))


def byol_1(image_size: int, num_views: int = 2) -> Policy:
    """BYOL's first distribution T for every view; see ``byol``."""
    return _byol("byol-1", image_size, num_views, (0,))


def byol_2(image_size: int, num_views: int = 2) -> Policy:
    """BYOL's second distribution T' for every view; see ``byol``."""
    return _byol("byol-2", image_size, num_views, (1,))


def _byol(name: str, image_size: int, num_views: int, turns: tuple[int, ...]) -> Policy:
    small = image_size < SMALL
    by = reach(0.2, 0.2, 0.1, 0.05) if small else reach(0.4, 0.4, 0.2, 0.1)
    t = Ranges(jitter=0.8, **by, gray=0.2, blur=0.0 if small else 1.0)
    other = replace(t, blur=0.0 if small else 0.1, solarize=0.2)
    views = tuple((t, other)[turns[view % len(turns)]] for view in range(num_views))
    settings = Settings(interpolation="bicubic", blur_window=tenth(image_size), **IMAGENET)
    group = Group(size=image_size, num_views=num_views, settings=settings)
    return Policy(name=name, groups=(group,), corners=(Corner(views=views),))


def amortised_2(image_size: int, num_views: int = 2) -> Policy:
    """Amortised invariance, 2 groups (Chavhan et al. 2023, arXiv:2302.12712), after their code.

    Bits (spatial, appearance); each step draws [0,1], [1,0] or [1,1] for the whole batch. Spatial:
    crop area .08-1 and flip .5; without it the middle 7/8 of each side (224 of 256). Appearance
    alone: jitter .8 of +-(.4, .4, .2, .1), grey .2, blur .5, solarize .2; both: the same without
    solarize. These are their numbers of November 2022 but for the 7/8 (then the whole image): later
    ones apply grey always, so that the corner never sees a colour. Under 64 px: the whole image,
    half the jitter and no blur (ours).
    """
    small = image_size < SMALL
    by = reach(0.2, 0.2, 0.1, 0.05) if small else reach(0.4, 0.4, 0.2, 0.1)
    colours = Ranges(jitter=0.8, **by, gray=0.2, blur=0.0 if small else 0.5)
    still = replace(colours, crop="centre", kept=_kept(image_size), hflip=0.0, solarize=0.2)
    corners = (((0, 1), still), ((1, 0), Ranges()), ((1, 1), colours))
    return _amortised("amortised-2", image_size, num_views, corners, ("spatial", "appearance"))


def amortised_5(image_size: int, num_views: int = 2) -> Policy:
    """Amortised invariance, 5 groups (as ``amortised_2``): the 26 vectors with two bits or more.

    Bits (crop, jitter, grey, blur, flip), each with the probability of the default policy of
    November 2022: crop area .08-1, jitter .8 of +-(.4, .4, .2, .1), grey .2, blur .5, flip .5. The
    blur stays under 64 px, in a window of a tenth of the side, 3 px at least (ours), or its bit
    would decide nothing.
    """
    full = Ranges(jitter=0.8, **reach(0.4, 0.4, 0.2, 0.1), gray=0.2, blur=0.5)
    without: tuple[dict, ...] = (
        {"crop": "centre", "kept": _kept(image_size)},
        {"jitter": 0.0},
        {"gray": 0.0},
        {"blur": 0.0},
        {"hflip": 0.0},
    )
    corners = []
    for bits in product((0, 1), repeat=5):
        changes = {k: v for bit, off in zip(bits, without, strict=True) if not bit
                   for k, v in off.items()}  # fmt: skip
        if sum(bits) >= 2:
            corners.append((bits, replace(full, **changes)))
    names = ("crop", "jitter", "gray", "blur", "hflip")
    return _amortised("amortised-5", image_size, num_views, tuple(corners), names)


def _amortised(
    name: str,
    image_size: int,
    num_views: int,
    corners: tuple[tuple[tuple[int, ...], Ranges], ...],
    bit_names: tuple[str, ...],
) -> Policy:
    settings = Settings(blur_window=tenth(image_size), **IMAGENET)
    return Policy(
        name=name,
        groups=(Group(size=image_size, num_views=num_views, settings=settings),),
        corners=tuple(Corner(bits=bits, views=(ranges,) * num_views) for bits, ranges in corners),
        bit_names=bit_names,
    )


def digits(image_size: int, num_views: int = 2) -> Policy:
    """Small images whose content turns into another by a flip, as digits do; ours throughout.

    Crop area .5-1, ratio 4/5-5/4: shifts and zooms. No flip, no colour. Give images larger than the
    views (digits of 8 px enlarged to 32): a crop's edges lie on whole pixels of the image.
    """
    ranges = Ranges(scale=(0.5, 1.0), ratio=(4 / 5, 5 / 4), hflip=0.0)
    group = Group(size=image_size, num_views=num_views, settings=Settings(**IMAGENET))
    return alike("digits", ranges, group)


PRESETS: dict[str, Callable[[int, int], Policy]] = {
    "simclr": simclr,
    "mocov2": mocov2,
    "invclr": invclr,
    "swav": swav,
    "dissl": dissl,
    "dissl-coarse": dissl_coarse,
    "byol": byol,
    "byol-1": byol_1,
    "byol-2": byol_2,
    "amortised-2": amortised_2,
    "amortised-5": amortised_5,
    "digits": digits,
}


def preset(name: str, *, image_size: int, num_views: int = 2) -> Policy:
    """The image policy ``name``; ValueError names the known ones and the nearest."""
    check_name(name, tuple(PRESETS), what="images")
    if image_size < 1:
        raise ValueError(f"--image-size: expected at least 1 pixel, received {image_size}")
    return PRESETS[name](image_size, num_views)


def check_name(name: str, known: tuple[str, ...], *, what: str) -> None:
    """ValueError for a policy that ``what`` does not have, with what may have been meant."""
    if name in known:
        return
    close = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"--augment: expected one of {', '.join(known)} for {what}, received {name!r}{hint}"
    )


def tenth(side: int) -> int:
    """SimCLR's blur window: a tenth of the side as an odd number, 3 at least (23 of 224).

    Of one pixel 1: a window reaches over less than the side.
    """
    return min(2 * side - 1, max(3, 2 * (side // 20) + 1))


def _kept(image_size: int) -> float:
    return 7 / 8 if image_size >= SMALL else 1.0

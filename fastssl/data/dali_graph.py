"""The DALI graph of a training batch: decode once, then every view from its parameter table.

Per view: crop+resize (triangle filter with antialias, over the pixels around the crop too), colour
(out = A x + B mean(x), clamped), Gaussian blur, flip, normalise: augment/linear_policy.py's order. The
same graph runs on the CPU (``device_id=None``) and on a CUDA device (mixed decoding).
"""

# shapes: N samples, C channels, S side
from __future__ import annotations

from typing import Any

import numpy as np

from fastssl.augment.linear_policy import Policy, ViewParams, blur_windows, colour_maps


def build(
    policy: Policy,
    *,
    side: int,
    num_views: int,
    batch_size: int,
    threads: int,
    device_id: int | None,
) -> Any:
    """A built DALI pipeline with one output (N, 3, S, S) per view; imports DALI."""
    import nvidia.dali.fn as fn
    from nvidia.dali import Pipeline

    pipeline = Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=1,
    )
    with pipeline:
        image = _decode(fn.external_source(name="encoded", device="cpu"), device_id)
        views = [_view(image, view, policy, side) for view in range(num_views)]
        pipeline.set_outputs(*views)
    pipeline.build()
    return pipeline


def build_decoder(*, device_id: int | None) -> Any:
    """A pipeline that decodes one file: to find the one that a batch failed on."""
    import nvidia.dali.fn as fn
    from nvidia.dali import Pipeline

    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=device_id, prefetch_queue_depth=1)
    with pipeline:
        pipeline.set_outputs(_decode(fn.external_source(name="encoded", device="cpu"), device_id))
    pipeline.build()
    return pipeline


def feed(
    pipeline: Any, encoded: list[np.ndarray], tables: list[ViewParams], policy: Policy
) -> None:
    """Hands a batch to the graph: the files' bytes and one parameter table per view."""
    pipeline.feed_input("encoded", encoded)
    for view, params in enumerate(tables):
        for name, values in _arguments(params, policy).items():
            pipeline.feed_input(f"{name}{view}", np.ascontiguousarray(values))


def _arguments(params: ViewParams, policy: Policy) -> dict[str, np.ndarray]:
    box_N4 = params.box_N4
    start_N2 = box_N4[:, [1, 0]]
    pixel_N33, mean_N33 = colour_maps(params)
    blur = {"sigma": params.sigma_N, "window": blur_windows(params)} if policy.blur > 0 else {}
    return {
        "start": start_N2,
        "end": start_N2 + box_N4[:, [3, 2]],
        "pixel_map": pixel_N33,
        "mean_map": mean_N33,
        "flip": params.flip_N.astype(np.int32),
        **blur,
    }


def _decode(encoded: Any, device_id: int | None) -> Any:
    import nvidia.dali.fn as fn
    from nvidia.dali import types

    return fn.decoders.image(
        encoded,
        device="cpu" if device_id is None else "mixed",
        output_type=types.RGB,
        jpeg_fancy_upsampling=True,  # what PIL does
    )


def _view(image: Any, view: int, policy: Policy, side: int) -> Any:
    import nvidia.dali.fn as fn
    from nvidia.dali import types

    def argument(name: str) -> Any:
        return fn.external_source(name=f"{name}{view}", device="cpu")

    pixel = fn.resize(
        image,
        size=[side, side],
        roi_start=argument("start"),
        roi_end=argument("end"),
        interp_type=types.INTERP_LINEAR,
        antialias=True,
        dtype=types.UINT8,
    )
    mean = fn.reductions.mean(pixel, axes=[0, 1], keep_dims=True)
    shift = fn.coord_transform(mean, M=argument("mean_map"))
    pixel = fn.coord_transform(pixel, M=argument("pixel_map")) + shift
    pixel = fn.reinterpret(clamp(pixel), layout="HWC")
    if policy.blur > 0:
        pixel = fn.gaussian_blur(
            pixel, sigma=argument("sigma"), window_size=argument("window"), dtype=types.FLOAT
        )
    return fn.crop_mirror_normalize(
        pixel,
        mirror=argument("flip"),
        mean=[255.0 * value for value in policy.mean],
        std=[255.0 * value for value in policy.std],
        dtype=types.FLOAT,
        output_layout="CHW",
    )


def clamp(pixel: Any) -> Any:
    """Values to 0..255, the range of the resized image."""
    from nvidia.dali import math

    return math.clamp(pixel, 0.0, 255.0)

"""The all-DALI peer of `loader`: SimCLR's views as DALI itself would make them on the CPU.

Its best settings: decode once for both views, triangle-filter crops, one colour_twist for the four
jitters and the greyscale, blur under a condition so that only the images that are blurred pay.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def pipeline(folder: str, *, batch_size: int, size: int, threads: int) -> Any:
    """A built pipeline of two views (N, 3, S, S) float32 of shuffled files."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(
        batch_size=batch_size,
        num_threads=threads,
        device_id=None,
        seed=0,
        prefetch_queue_depth=2,
        enable_conditionals=True,
    )
    def two_views() -> tuple[Any, Any]:
        encoded, _ = fn.readers.file(file_root=folder, random_shuffle=True, name="files")
        image = fn.decoders.image(
            encoded, device="cpu", output_type=types.RGB, jpeg_fancy_upsampling=True
        )
        return view(image, size), view(image, size)

    built = two_views()
    built.build()
    return built


def view(image: Any, size: int) -> Any:
    """One view; SimCLR's probabilities and ranges (jitter in a fixed order, not shuffled)."""
    from nvidia.dali import fn, math, types

    pixel = fn.random_resized_crop(
        image,
        size=[size, size],
        random_area=[0.08, 1.0],
        random_aspect_ratio=[3 / 4, 4 / 3],
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )
    on = fn.random.coin_flip(probability=0.8)
    grey = fn.random.coin_flip(probability=0.2)
    factor = [1.0 + on * fn.random.uniform(range=[-0.8, 0.8]) for _ in range(3)]
    pixel = fn.color_twist(
        pixel,
        brightness=factor[0],
        contrast=factor[1],
        saturation=math.max(factor[2], 0.0) * (1.0 - grey),
        hue=360.0 * on * fn.random.uniform(range=[-0.2, 0.2]),
    )
    if fn.random.coin_flip(probability=0.5, dtype=types.BOOL):
        pixel = fn.gaussian_blur(
            pixel, sigma=fn.random.uniform(range=[0.1, 2.0]), window_size=2 * (size // 20) + 1
        )
    return fn.crop_mirror_normalize(
        pixel,
        mirror=fn.random.coin_flip(probability=0.5),
        mean=[255.0 * value for value in (0.485, 0.456, 0.406)],
        std=[255.0 * value for value in (0.229, 0.224, 0.225)],
        dtype=types.FLOAT,
        output_layout="CHW",
    )


def crops(contents: list[bytes], box_N4: np.ndarray, *, size: int) -> np.ndarray:
    """(N, S, S, 3) uint8: the boxes (left, top, width, height) as DALI decodes and resizes them."""
    from nvidia.dali import Pipeline, fn, types

    pipe = Pipeline(batch_size=len(contents), num_threads=2, device_id=None, prefetch_queue_depth=1)
    with pipe:
        encoded = fn.external_source(name="encoded", device="cpu")
        image = fn.decoders.image(
            encoded, device="cpu", output_type=types.RGB, jpeg_fancy_upsampling=True
        )
        part = fn.slice(
            image,
            fn.external_source(name="start", device="cpu"),
            fn.external_source(name="shape", device="cpu"),
            axis_names="HW",
            normalized_anchor=False,
            normalized_shape=False,
        )
        pipe.set_outputs(
            fn.resize(part, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True)
        )
    pipe.build()
    pipe.feed_input("encoded", [np.frombuffer(content, np.uint8) for content in contents])
    pipe.feed_input("start", np.ascontiguousarray(box_N4[:, [1, 0]], dtype=np.float32))
    pipe.feed_input("shape", np.ascontiguousarray(box_N4[:, [3, 2]], dtype=np.float32))
    (out,) = pipe.run()
    return np.array(out.as_tensor())

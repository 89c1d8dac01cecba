"""The DALI graph that decodes a batch: whole images, or one region of each for every view.

On the CPU (``device_id=None``) or on a CUDA device (mixed decoding). Resizing, colour and blur are
``augment``'s: one code for every decoder.
"""

from __future__ import annotations

from typing import Any


def build(
    *, batch_size: int, threads: int, device_id: int | None, num_regions: int | None = None
) -> Any:
    """A built pipeline: "encoded" -> (H, W, 3) uint8 images of any sizes; imports DALI.

    With ``num_regions`` there is an output for each, decoded in part: pixels from "start{v}" on,
    "shape{v}" many, (height, width) each.
    """
    import nvidia.dali.fn as fn
    from nvidia.dali import Pipeline

    pipeline = Pipeline(
        batch_size=batch_size, num_threads=threads, device_id=device_id, prefetch_queue_depth=1
    )
    with pipeline:
        encoded = fn.external_source(name="encoded", device="cpu")
        if num_regions is None:
            pipeline.set_outputs(fn.decoders.image(encoded, **_decoding(device_id)))
        else:
            regions = [_region(encoded, view, device_id) for view in range(num_regions)]
            pipeline.set_outputs(*regions)
    pipeline.build()
    return pipeline


def _region(encoded: Any, view: int, device_id: int | None) -> Any:
    import nvidia.dali.fn as fn

    return fn.decoders.image_slice(
        encoded,
        fn.external_source(name=f"start{view}", device="cpu"),
        fn.external_source(name=f"shape{view}", device="cpu"),
        axis_names="HW",
        normalized_anchor=False,
        normalized_shape=False,
        **_decoding(device_id),
    )


def _decoding(device_id: int | None) -> dict[str, Any]:
    from nvidia.dali import types

    return {
        "device": "cpu" if device_id is None else "mixed",
        "output_type": types.RGB,
        "jpeg_fancy_upsampling": True,  # what PIL does
    }

"""Memory traffic of ``augment`` on CUDA, in bytes per pixel of a view, against its floor.

The floor reads each source pixel once per view and writes each value of the view once. Counted at
one source pixel for each pixel of the view (a crop of the view's own size); the taps of a resize
come from the caches. Whatever fits the L2 cache never reaches memory, and is counted all the same.
"""

from __future__ import annotations

from itertools import product

PIXELS = 2 * 256 * 224 * 224  # of the roofline: two views of 256 images
CHANNELS = 3
SCRATCH = 4 * CHANNELS  # a float32 pixel between two launches
IMAGES = {"uint8": CHANNELS, "float": 4 * CHANNELS}
VIEWS = {"fp32": 4 * CHANNELS, "bf16": 2 * CHANNELS}
# (share of jittered samples, share of blurred ones) of policies as published
POLICIES = {"crop and flip": (0.0, 0.0), "simclr, 32 px": (0.8, 0.0), "simclr": (0.8, 0.5)}


def moved(kernel: str, dtype: str) -> int:
    """Bytes per pixel of one kernel, on a sample that it takes to the end of the view."""
    source = IMAGES.get(kernel.removeprefix("crop_"), SCRATCH)
    return {
        "blur_rows": 2 * SCRATCH,
        "equalize": 2 * SCRATCH + VIEWS[dtype],  # the histogram, then the table
    }.get(kernel, source + VIEWS[dtype])


def floor(images: str, dtype: str) -> int:
    """Bytes per pixel that no implementation can avoid."""
    return IMAGES[images] + VIEWS[dtype]


def of_policy(images: str, dtype: str, jittered: float, blurred: float) -> float:
    """Bytes per pixel over all launches, the mean of a policy's samples."""
    total = float(floor(images, dtype))
    total += jittered * 2 * SCRATCH  # contrast waits for the mean
    return total + blurred * 4 * SCRATCH  # written, along rows, along columns


def lines() -> list[str]:
    """One row for each policy and pair of dtypes."""
    found = []
    for (name, shares), images, dtype in product(POLICIES.items(), IMAGES, VIEWS):
        least, all_bytes = floor(images, dtype), of_policy(images, dtype, *shares)
        found.append(
            f"augment {name:14} {images:>5} to {dtype}: {all_bytes:5.1f} bytes per pixel, "
            f"floor {least:4.1f}, {all_bytes / least:.2f}x"
        )
    return found

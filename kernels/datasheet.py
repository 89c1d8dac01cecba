"""``python -m fastssl.kernels.datasheet``: what every shipped Triton config compiles to.

No GPU is needed. Exits 1 if a config spills registers or could not launch, or if an installed peer
does less work than we do. Roofline times are for 8192 x 8192 logits at D = 128, or for two views of
256 images at 224 px, whose pixels stand in the columns of the logits: the largest of matrix, exp2
and memory time at the chip's peaks. Work is counted with bounded logits.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from fastssl.kernels import datasheet_pixels

if TYPE_CHECKING:
    from fastssl.kernels.aot import Binary

M, D = 8192, 128
# Per logit of the M x M matrix: (flops / D, exponentials). NT-Xent's forward visits half of them;
# the two GEMMs that read "weights" are torch's and not counted here.
COUNTS = {
    ("ntxent", "forward"): (1.0, 0.5),
    ("ntxent", "backward"): (4.0, 1.0),
    ("ntxent", "weights"): (2.0, 1.0),
    ("contrast", "rows"): (2.0, 1.0),
    ("contrast", "columns"): (2.0, 1.0),
    ("contrast", "mean"): (4.0, 1.02),  # and one per row and tile, for the running maximum
    ("contrast", "pull"): (4.0, 1.0),
    ("contrast", "weights"): (2.0, 1.0),
    ("sigmoid_pairs", "rows"): (2.0, 1.0),
    ("sigmoid_pairs", "weights"): (2.0, 1.0),
}
HEADER = (
    f"{'op':13} {'kernel':19} {'dtype':5} {'depth':>5} {'chip':>5} {'regs':>4} {'spill':>5} "
    f"{'shared':>7} {'occup.':>6} {'mma':>4} {'ex2':>4} {'flop/logit':>10} {'exp/logit':>9} "
    f"{'B/logit':>8} {'roof us':>8}"
)


def counts(binary: Binary) -> tuple[float, float, float]:
    """(flops, bytes, exponentials) per logit of the M x M matrix; zeros for row-wise kernels.

    Of augment: bytes per pixel alone, which is what bounds it.
    """
    config = binary.config
    if config.op == "augment":
        return 0.0, float(datasheet_pixels.moved(config.kernel, config.dtype)), 0.0
    products, exponentials = work(config.op, config.kernel)
    if not products:
        return 0.0, 0.0, 0.0
    itemsize = 2 if config.dtype in ("bf16", "fp16") else 4
    rows = 2 * M * D * itemsize + 16 * M  # embeddings in, their sums or gradients out
    written = M * M * itemsize if config.kernel == "weights" else 0
    return products * D, (rows + written) / M**2, exponentials


def work(op: str, kernel: str) -> tuple[float, float]:
    """(flops / D, exponentials) per logit of our kernels and of the peers'."""
    if (op, kernel) in COUNTS:
        return COUNTS[op, kernel]
    if op in ("ntxent", "contrast", "sigmoid_pairs"):
        return 0.0, 0.0
    from fastssl.kernels.datasheet_peers import KERNELS

    peer = next(peer for peer in KERNELS if (peer.package, peer.name) == (op, kernel))
    return peer.products, peer.exponentials


def roofline_us(binary: Binary) -> float:
    """Microseconds at M = 8192, D = 128 if nothing but the slowest of the three pipes counted.

    Of augment: for two views of 256 images at 224 px.
    """
    from fastssl.kernels.aot import CHIPS

    chip = CHIPS[binary.arch]
    flops, moved, exponentials = counts(binary)
    ex2_per_s = chip.ex2_per_clock * chip.multiprocessors * chip.clock_ghz * 1e9
    seconds = max(
        flops / (chip.tflops[binary.config.dtype] * 1e12),
        moved / chip.bytes_per_s,
        exponentials / ex2_per_s,
    )
    return seconds * (datasheet_pixels.PIXELS if binary.config.op == "augment" else M**2) * 1e6


def line(binary: Binary) -> str:
    """One row of the table, ending with what is wrong with the binary if anything is."""
    from fastssl.kernels.aot import CHIPS

    config = binary.config
    flops, moved, exponentials = counts(binary)
    return (
        f"{config.op:13} {config.kernel:19} {config.dtype:5} {config.depth or 'any':>5} "
        f"{CHIPS[binary.arch].name:>5} {binary.registers:4} {binary.stack:5} {binary.shared:7} "
        f"{binary.occupancy:6.0%} {binary.mma:4} {binary.ex2:4} {flops:10.0f} {exponentials:9.2f} "
        f"{moved:8.3f} {roofline_us(binary):8.1f}  {binary.problem}"
    ).rstrip()


def record(binary: Binary) -> dict:
    """The row and what it was computed from, ready for JSON."""
    flops, moved, exponentials = counts(binary)
    return {
        **asdict(binary),
        "occupancy": binary.occupancy,
        "flops_per_logit": flops,
        "bytes_per_logit": moved,
        "exponentials_per_logit": exponentials,
        "roofline_us": roofline_us(binary),
        "problem": binary.problem,
    }


def peers(archs: tuple[int, ...]) -> tuple[bool, list[Binary]]:
    """Prints the same rows for public kernels; whether we are ahead of all, and their binaries."""
    from fastssl.kernels import datasheet_peers

    reasons = datasheet_peers.installed()
    for package, reason in reasons.items():
        if reason:
            print(f"{package} is left out: {reason}")
    present = {package for package, reason in reasons.items() if not reason}
    binaries: list[Binary] = []
    for kernel in datasheet_peers.KERNELS:
        if kernel.package in present:
            for arch in archs:
                binaries.append(datasheet_peers.compiled(kernel, arch))
                print(line(binaries[-1]), flush=True)
    lines, ahead = datasheet_peers.comparison(present)
    print("\n".join(lines))
    return ahead, binaries


def main(arguments: list[str] | None = None) -> int:
    """Prints the table. 0: all may ship, 1: some may not, 2: triton is missing."""
    options = _parser().parse_args(arguments)
    try:
        import triton

        from fastssl.kernels import aot
        from fastssl.kernels.cuda import ARCHS
    except ImportError as error:
        print(f"datasheet: needs triton ({error}); pip install triton", file=sys.stderr)
        return 2
    archs = (options.arch,) if options.arch else ARCHS
    print(f"triton {triton.__version__}; roofline at M = {M}, D = {D}\n{HEADER}")
    binaries = []
    for config, arch in aot.shipped(archs):
        if options.kernel in (None, config.kernel) and options.op in (None, config.op):
            binaries.append(aot.compile_config(config, arch))
            print(line(binaries[-1]), flush=True)
    bad = [binary for binary in binaries if binary.problem]
    print(f"{len(binaries)} binaries, {len(bad)} that must not ship")
    if options.kernel is None and options.op in (None, "augment"):
        print("\n".join(datasheet_pixels.lines()))
    asked = options.kernel is None and options.op in (None, "peers")
    ahead, public = peers(archs) if asked else (True, [])
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump([record(binary) for binary in [*binaries, *public]], file, indent=1)
    nothing = not binaries and options.op != "peers"
    return 1 if bad or nothing or not ahead else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastssl.kernels.datasheet", description=__doc__
    )
    parser.add_argument("--json", metavar="FILE", help="also write the table as JSON")
    parser.add_argument("--arch", type=int, choices=(80, 90, 100), help="one architecture only")
    parser.add_argument(
        "--op",
        choices=("ntxent", "contrast", "sigmoid_pairs", "augment", "peers"),
        help="one operator only",
    )
    parser.add_argument("--kernel", help="one kernel only, such as forward or mean")
    return parser


if __name__ == "__main__":
    sys.exit(main())

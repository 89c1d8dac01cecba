"""The Triton kernels of augment: right between guard bands, and they compile for every chip."""

# shapes: V views, N samples, S side of a view
from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: nothing to interpret")

from fastssl.kernels import aot, datasheet, datasheet_pixels
from fastssl.kernels.augment import configs, launch, reference, spec
from fastssl.kernels.augment.settings import Settings
from fastssl.kernels.cuda import ARCHS

BUGS = [
    "write out of bounds",
    "taps beyond the image",
    "pixels that are not the image's",
    "another filter",
    "flips exchanged",
    "affine not rounded",
    "pixels past the first block",
    "jitter unclamped",
    "steps in another order",
    "blur wraps around",
    "levels rounded otherwise",
]


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.interpreted_augment"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["case"]: line["wrong"] for line in lines}


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_every_view_is_right_and_stays_within_its_tensors(answers, dtype):
    cases = {case: wrong for case, wrong in answers.items() if case.startswith(dtype)}
    assert len(cases) >= {"uint8": 13, "float32": 24}[dtype]
    assert {case: wrong for case, wrong in cases.items() if wrong} == {}


def test_numbers_that_no_device_refuses_lead_nowhere(answers):
    assert answers["hostile"] == ""


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(answers, bug):
    assert answers[f"planted: {bug}"] != ""


QUICK = {
    ("crop_uint8", "bf16"), ("crop_float", "fp32"), ("tone", "bf16"), ("blur_rows", "fp32"),
    ("blur_columns", "bf16"), ("equalize", "fp32"),
}  # fmt: skip


@pytest.mark.parametrize("arch", ARCHS)
def test_one_config_of_each_kernel_compiles_and_can_launch(arch):
    chosen = [c for c in configs.CONFIGS if (c.kernel, c.dtype) in QUICK and arch in c.archs]
    assert {config.kernel for config in chosen} == set(launch.KERNELS)
    for config in chosen:
        found = aot.compile_config(config, arch)
        assert found.problem == "", (config, arch)
        assert found.mma == 0 and found.occupancy >= 0.4, (config, arch)


def test_every_dtype_is_served_on_every_chip():
    assert {config for config, _ in aot.shipped() if config.op == "augment"} == set(configs.CONFIGS)
    for arch in ARCHS:
        for kernel in launch.KERNELS:
            for dtype in launch.NAMES.values():
                assert configs.serving(kernel, dtype, arch) is not None


def test_the_datasheet_counts_bytes_per_pixel_against_the_floor(capsys):
    assert datasheet.main(["--arch", "90", "--op", "augment", "--kernel", "blur_rows"]) == 0
    assert "24.000" in capsys.readouterr().out
    # one kernel alone makes a view of crop and flip; contrast costs one more write and read
    assert datasheet_pixels.moved("crop_uint8", "fp32") == datasheet_pixels.floor("uint8", "fp32")
    assert datasheet_pixels.of_policy("uint8", "fp32", 0, 0) == 15
    jittered = datasheet_pixels.SCRATCH + datasheet_pixels.moved("tone", "bf16")
    expected = datasheet_pixels.IMAGES["uint8"] + jittered
    assert datasheet_pixels.of_policy("uint8", "bf16", 1, 0) == expected
    assert any("simclr" in line and "3.88x" in line for line in datasheet_pixels.lines())


def recorded(monkeypatch, images, sizes_N2=None, **settings) -> dict[str, tuple]:
    """Arguments of every launch of a call, by kernel, in order."""
    calls: dict[str, tuple] = {}
    monkeypatch.setattr(launch, "launch", lambda config, grid, *a: calls.update({config.kernel: a}))
    sizes = [(8, 9)] * (len(images) if images[0].dim() == 3 else len(images[0]))
    table = spec.still(sizes)
    call = (table.values_VNP, table.codes_VNC, 5, Settings(**settings))
    launch.forward(images, sizes_N2, *call)
    return calls


def test_a_call_is_five_launches_and_three_without_blur(monkeypatch):
    images = [torch.zeros(2, 3, 8, 9, dtype=torch.uint8)]
    whole = ["crop_uint8", "tone", "blur_rows", "blur_columns", "equalize"]
    assert list(recorded(monkeypatch, images)) == whole
    assert list(recorded(monkeypatch, images, blur_window=1)) == [whole[0], whole[1], whole[4]]


def test_images_are_read_where_they_lie(monkeypatch):
    images = [torch.zeros(8, 9, 3).permute(2, 0, 1), torch.zeros(3, 9, 8).mT]
    table_N6 = recorded(monkeypatch, images)["crop_float"][0]
    assert table_N6.tolist() == [[x.data_ptr(), *x.stride(), *x.shape[1:]] for x in images]
    batch = torch.zeros(2, 8, 9, 3).permute(0, 3, 1, 2)
    arguments = recorded(monkeypatch, [batch])["crop_float"]
    assert (batch.data_ptr(), *batch.stride(), 8, 9) == arguments[7:14]


def test_float64_and_old_devices_get_the_reference(monkeypatch):
    table = spec.drawn([(6, 7)] * 2, stages=("jitter",), dtype=torch.float64)
    rest = (None, table.values_VNP, table.codes_VNC, 4, Settings())
    images = [torch.rand(2, 3, 6, 7, dtype=torch.float64)]
    assert torch.equal(launch.forward(images, *rest), reference.forward(images, *rest))
    monkeypatch.setattr(launch, "serves", lambda device, op: False)
    images = [images[0].float()]
    assert torch.equal(launch.forward(images, *rest), reference.forward(images, *rest))

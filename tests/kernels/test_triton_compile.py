"""Gates 2 and 3: what ships compiles for every chip, without spills, and can launch."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: nothing to compile")

from fastssl.kernels import aot, cuda, datasheet, datasheet_peers
from fastssl.kernels.cuda import ARCHS, Config
from fastssl.kernels.ntxent import launch, reference
from fastssl.kernels.ntxent.configs import serving

TILES = {
    "ntxent": {"forward", "backward", "weights"},
    "contrast": {"rows", "columns", "mean", "pull", "weights"},
    "sigmoid_pairs": {"rows", "weights"},
}


def is_quick(config: Config) -> bool:
    """One of each kernel: bf16 at D = 128, and the fp32 tiles ("average" is of 16 bits only)."""
    tiles = config.kernel in TILES[config.op] or config.kernel == "average"
    return (tiles and config.dtype == "bf16" and config.depth in (0, 128)) or (
        config.dtype == "fp32" and config.kernel != "weights"
    )


def binary(config: Config, arch: int) -> aot.Binary:
    return aot.compile_config(config, arch)


@pytest.mark.parametrize("op", TILES)
@pytest.mark.parametrize("arch", ARCHS)
def test_one_config_of_each_kernel_compiles_and_can_launch(arch, op):
    shipped = [config for config in aot.CONFIGS if config.op == op]
    chosen = [config for config in shipped if is_quick(config) and arch in config.archs]
    assert {config.kernel for config in chosen} == {config.kernel for config in shipped}
    for config in chosen:
        found = binary(config, arch)
        assert found.problem == "", (config, arch)
        if config.kernel in TILES[op]:
            assert found.ex2 > 0
            assert (found.mma > 0) == (config.dtype != "fp32")  # fp32 means fp32


@pytest.mark.slow
def test_every_shipped_config_compiles_and_can_launch(tmp_path):
    assert datasheet.main(["--json", str(tmp_path / "sheet.json")]) == 0
    assert len(json.loads((tmp_path / "sheet.json").read_text())) == len(list(aot.shipped()))


def test_every_padded_depth_is_served_on_every_chip():
    for arch in ARCHS:
        for dtype in ("bf16", "fp16", "fp32", "tf32"):
            for depth in (64, 128, 256, 320, 512, 2048):
                for kernel in ("prepare", "forward", "merge", "state", "project"):
                    assert serving(kernel, dtype, depth, arch) is not None
                fused = serving("backward", dtype, depth, arch)
                assert (fused is None) == (dtype in ("fp32", "tf32") or depth > 256)
                assert fused is not None or serving("weights", dtype, depth, arch) is not None


def test_a_tile_that_does_not_fit_shared_memory_is_refused():
    tile = {"BI": 128, "BJ": 128, "BK": 128, "RESIDENT": False, "PRECISION": "tf32"}
    canary = Config("forward", "tf32", 0, 8, 4, tile)
    found = binary(canary, 90)
    assert found.shared > 232_448
    assert found.problem.startswith("cannot launch")
    assert found.occupancy == 0.0


def test_the_datasheet_exits_non_zero_for_a_config_that_spills(monkeypatch, capsys):
    tile = {"BI": 128, "BJ": 64, "BK": 256, "PRECISION": "tf32"}
    canary = Config("backward", "bf16", 256, 4, 2, tile, archs=(90,))
    monkeypatch.setattr(aot, "CONFIGS", (canary,))
    assert datasheet.main(["--arch", "90", "--op", "ntxent"]) == 1
    assert "spills" in capsys.readouterr().out


def test_the_datasheet_prints_a_row_per_binary(capsys):
    assert datasheet.main(["--arch", "90", "--op", "ntxent", "--kernel", "state"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("H100") == 4
    assert "4 binaries, 0 that must not ship" in printed


def test_an_absent_peer_is_left_out_with_a_line(monkeypatch, capsys):
    absent = replace(datasheet_peers.KERNELS[0], package="no_such_package")
    monkeypatch.setattr(datasheet_peers, "KERNELS", (absent,))
    assert datasheet.main(["--op", "peers", "--arch", "90"]) == 0
    printed = capsys.readouterr().out
    assert "no_such_package is left out: not installed" in printed
    assert "H100" not in printed


def test_a_peer_that_does_less_work_fails_the_datasheet(monkeypatch, capsys):
    monkeypatch.setattr(datasheet_peers, "installed", lambda: {"memeff": ""})
    monkeypatch.setattr(datasheet_peers, "KERNELS", ())
    assert datasheet.main(["--op", "peers"]) == 0
    better = datasheet_peers.Loss("CLIP", (8.0, 2.0), {"memeff": (7.0, 3.0)})
    monkeypatch.setattr(datasheet_peers, "LOSSES", (better,))
    assert datasheet.main(["--op", "peers"]) == 1
    assert "BEHIND" in capsys.readouterr().out


@pytest.mark.parametrize("package", ["memeff", "inf_cl"])
def test_a_public_kernel_is_compiled_as_its_package_would_launch_it(package):
    pytest.importorskip(package, reason=f"{package} is not installed: nothing to compare with")
    for kernel in datasheet_peers.KERNELS:
        if kernel.package == package:
            found = datasheet_peers.compiled(kernel, 90)
            assert found.mma > 0 and found.registers > 0
            if kernel.products == 2.0:  # the forward: as many exponentials as we say
                tile = {"memeff": 128 * 128, "inf_cl": 64 * 64}[package]
                assert found.ex2 * found.config.num_warps * 32 >= kernel.exponentials * tile


def test_rooflines_follow_from_the_counts():
    config = serving("forward", "bf16", 128, 90)
    assert config is not None
    sheet = aot.Binary(config, 90, 100, 0, 1000, 16, 98)
    # M^2 D flops at 989 TFLOP/s against M^2 / 2 exponentials at 16 a clock on 132 cores
    assert datasheet.roofline_us(sheet) == pytest.approx(8192**2 * 128 / 989e12 * 1e6, rel=0.01)
    assert datasheet.counts(replace(sheet, config=serving("state", "bf16", 128, 90))) == (0, 0, 0)


def test_a_gpu_too_old_for_the_tiles_gets_the_reference(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    cuda.serves.cache_clear()
    with pytest.warns(RuntimeWarning, match="sm_80 or newer .Tesla T4."):
        assert not cuda.serves(torch.device("cuda", 0), "ntxent")
    cuda.serves.cache_clear()
    monkeypatch.setattr(launch, "serves", lambda device, op: False)
    views, temperature = list(torch.randn(2, 6, 5)), torch.tensor(0.1)
    loss, *saved = launch.forward(views, temperature, "mean", True)
    exact, *_ = reference.forward(views, temperature, "mean", True)
    assert torch.equal(loss, exact)
    dz_MD, _ = launch.backward(torch.ones(()), views, temperature, "mean", *saved)
    assert dz_MD.shape == (12, 5) and dz_MD.isfinite().all()

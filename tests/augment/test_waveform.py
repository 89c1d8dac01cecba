"""Operators equal torchaudio's, tables are pure, and only clips whose bit is set are touched."""

# shapes: V views, N samples, T samples of a clip, K operators
from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torchaudio

from fastssl.augment.audio_policies import AUDIO_POLICIES, AudioPolicy, draw_waveforms
from fastssl.augment.keyed_noise import add_noise, coloured_noise
from fastssl.augment.waveform import augment_waveforms, schedule
from fastssl.augment.waveform_table import (
    CODES,
    FADE_SHAPES,
    FIRST_STEP,
    IDENTITY,
    OPERATORS,
    VALUES,
    WaveformTable,
)

MTSLVR = AUDIO_POLICIES["mtslvr"]
LENGTH = 8000


def drawn(policy=MTSLVR, *, index=None, count=3000, seed=0, epoch=0, **options) -> WaveformTable:
    index_N = np.arange(count) if index is None else index
    return draw_waveforms(policy, seed=seed, epoch=epoch, index_N=index_N, **options)


def table(*operators: str, codes: dict | None = None, **values: float) -> WaveformTable:
    """One view of one clip."""
    value_P = [values.get(name, IDENTITY.get(name, 0.0)) for name in VALUES]
    code_C = torch.full((len(CODES),), -1, dtype=torch.int32)
    code_C[:FIRST_STEP] = 0
    for position, name in enumerate(operators):
        code_C[FIRST_STEP + position] = OPERATORS.index(name)
    for name, code in (codes or {}).items():
        code_C[CODES.index(name)] = code
    return WaveformTable(torch.tensor(value_P)[None, None], code_C[None, None])


def sound(count: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.manual_seed(seed)
    return torch.randn(count, LENGTH, generator=generator, dtype=torch.float64)


def applied(*operators: str, **options) -> torch.Tensor:
    return augment_waveforms(sound(), table(*operators, **options))[0, 0]


def test_a_row_of_the_table_depends_on_its_own_key_alone():
    whole, order = drawn(count=500), np.random.default_rng(0).permutation(500)
    shuffled = drawn(index=order)
    assert torch.equal(shuffled.values_VNP, whole.values_VNP[:, order])
    assert torch.equal(shuffled.codes_VNC, whole.codes_VNC[:, order])
    for other in (drawn(count=500, seed=1), drawn(count=500, epoch=1)):
        assert not torch.equal(other.steps_VNK, whole.steps_VNK)
    assert not torch.equal(whole.values_VNP[0], whole.values_VNP[1])


def test_mtslvr_draws_an_ordered_subset_that_both_views_share():
    steps_VNK = drawn().steps_VNK
    assert torch.equal(steps_VNK[0], steps_VNK[1])
    count_N = (steps_VNK[0] >= 0).sum(dim=1)
    share = torch.bincount(count_N, minlength=8)[1:].double() / len(count_N)
    assert (share - 1 / 7).abs().max() < 0.03 and (count_N >= 1).all()
    for row, count in zip(steps_VNK[0].tolist(), count_N.tolist(), strict=True):
        assert len(set(row[:count])) == count and set(row[count:]) == {-1}
    first = torch.bincount(steps_VNK[0, :, 0], minlength=7).double() / len(count_N)
    assert first.numel() == 7 and (first - 1 / 7).abs().max() < 0.03


def test_labels_are_the_operators_that_run_in_the_papers_order():
    drawing = drawn()
    labels_VNK = drawing.labels()
    assert labels_VNK.shape == (2, 3000, 7) and labels_VNK.dtype == torch.float32
    assert (labels_VNK.mean(dim=(0, 1)) - 4 / 7).abs().max() < 0.03
    one = table("white_noise", "time_shift").labels()[0, 0]
    assert one.tolist() == [0, 0, 1, 0, 0, 0, 1]


def test_values_fill_the_published_ranges_and_are_the_identity_elsewhere():
    drawing = drawn(count=6000)
    ranges = {
        "semitones": (-15, 15, "pitch_shift"), "fade_in": (0, 0.5, "fade"),
        "white_snr": (3, 30, "white_noise"), "white_decay": (-1, 0, "white_noise"),
        "mixed_snr": (3, 30, "mixed_noise"), "mixed_decay": (-2, 2, "mixed_noise"),
        "rate": (0.5, 1.5, "time_stretch"), "mask_length": (0, 0.125, "time_mask"),
        "shift": (-0.5, 0.5, "time_shift"),
    }  # fmt: skip
    for name, (low, high, operator) in ranges.items():
        runs_VN, value_VN = drawing.runs(operator), drawing.value(name)
        inside = value_VN[runs_VN]
        assert low <= inside.min() and inside.max() <= high, name
        assert abs(inside.mean() - (low + high) / 2) < 0.02 * (high - low), name
        assert inside.max() - inside.min() > 0.98 * (high - low), name
        assert (value_VN[~runs_VN] == IDENTITY.get(name, 0.0)).all(), name
    rate = drawing.value("rate").double()
    assert (rate * 100 - (rate * 100).round()).abs().max() < 1e-4
    mask_end = drawing.value("mask_start") + drawing.value("mask_length")
    assert mask_end.max() <= 1
    shapes = torch.bincount(drawing.code("fade_in_shape").flatten()).double()
    assert (shapes / shapes.sum() - 1 / 3).abs().max() < 0.03


def test_group_bits_switch_operators():
    policy = AUDIO_POLICIES["amortised-audio"]
    for bits in ((1, 0, 0, 0), (0, 1, 0, 1), (0, 0, 0, 0), (1, 1, 1, 1)):
        drawing = drawn(policy, count=300, bits_G=bits)
        for bit, group in zip(bits, policy.groups, strict=True):
            for name in group:
                assert bool(drawing.runs(name).any()) == bool(bit), (bits, name)
    assert not torch.equal(*drawn(policy, count=300).steps_VNK)
    with pytest.raises(ValueError, match="bits_G: expected 4 bits.*received 2"):
        drawn(policy, bits_G=(1, 0))
    with pytest.raises(ValueError, match="expected names of pitch_shift.*received reverb"):
        AudioPolicy(operators=("reverb",))


def test_clar_draws_a_pair_per_view():
    steps_VNK = drawn(AUDIO_POLICIES["clar"]).steps_VNK
    assert ((steps_VNK >= 0).sum(dim=-1) == 2).all()
    assert not torch.equal(steps_VNK[0], steps_VNK[1])


@pytest.mark.parametrize("shape", FADE_SHAPES)
def test_a_fade_is_torchaudios(shape):
    codes = {"fade_in_shape": FADE_SHAPES.index(shape), "fade_out_shape": FADE_SHAPES.index(shape)}
    ours = applied("fade", codes=codes, fade_in=0.3, fade_out=0.47)
    ends = [int(float(np.float32(part)) * LENGTH) for part in (0.3, 0.47)]
    theirs = torchaudio.transforms.Fade(*ends, fade_shape=shape)(sound().float())[0]
    torch.testing.assert_close(ours, theirs.double(), atol=1e-6, rtol=1e-5)


def test_shift_mask_gain_and_stretch_do_what_they_say():
    x_T = sound()[0]
    torch.testing.assert_close(applied("time_shift", shift=0.25), x_T.roll(2000))
    torch.testing.assert_close(applied("time_shift", shift=-0.375), x_T.roll(-3000))
    masked = applied("time_mask", mask_start=0.5, mask_length=0.125)
    assert (masked[4000:5000] == 0).all() and torch.equal(masked[5000:], x_T[5000:])
    assert torch.equal(masked[:4000], x_T[:4000])
    torch.testing.assert_close(applied("gain", gain=20.0), 10 * x_T)
    fast = applied("time_stretch", rate=1.25)  # 6,400 samples, then from the start
    torch.testing.assert_close(fast[6400:], fast[:1600])
    torch.testing.assert_close(applied("time_stretch", rate=1.0), x_T, atol=1e-9, rtol=0)


@pytest.mark.parametrize("decay", [-2.0, -1.0, 0.0, 1.0, 2.0])
def test_noise_has_its_level_and_its_colour(decay):
    x_NT = sound(16)
    key_N = torch.arange(16, dtype=torch.int32) * 77_777
    noise_NT = add_noise(x_NT, key_N, torch.full((16,), 7.0), torch.full((16,), decay)) - x_NT
    level = 10 * torch.log10(x_NT.square().mean(1) / noise_NT.square().mean(1))
    torch.testing.assert_close(level, torch.full((16,), 7.0).double(), atol=1e-4, rtol=0)
    size_K = torch.fft.rfft(noise_NT).abs().square().mean(0).sqrt()
    curve_K = 1 + torch.arange(LENGTH // 2 + 1) * ((LENGTH // 2 + 1) ** 0.5 - 1) / (LENGTH // 2 + 1)
    bands = [slice(200, 400), slice(1000, 1400), slice(3000, 3900)]
    flat = torch.stack([(size_K[b] * curve_K[b] ** decay).mean() for b in bands])
    assert (flat / flat.mean() - 1).abs().max() < 0.05


def test_noise_is_gaussian_keyed_and_uncorrelated():
    key_N = torch.tensor([1, 2, 1], dtype=torch.int32)
    noise_NT = coloured_noise(key_N, torch.zeros(3), LENGTH)
    noise_NT = noise_NT / noise_NT.std(dim=1, keepdim=True)
    assert torch.equal(noise_NT[0], noise_NT[2])
    assert abs((noise_NT[0] * noise_NT[1]).mean()) < 0.05
    assert abs((noise_NT[0, 1:] * noise_NT[0, :-1]).mean()) < 0.05
    assert abs(noise_NT[0].pow(4).mean() - 3) < 0.25 and abs(noise_NT[0].mean()) < 1e-3
    silent = add_noise(torch.zeros(1, LENGTH), key_N[:1], torch.zeros(1), torch.zeros(1))
    assert silent.abs().max() < 1e-15


def test_each_clip_runs_its_own_operators_in_its_own_order():
    drawing, x_NT = drawn(count=6), sound(6)
    together = augment_waveforms(x_NT, drawing)
    assert together.shape == (2, 6, LENGTH)
    for n in range(6):
        for view in (0, 1):
            y_T = x_NT[n]
            for step in drawing.steps_VNK[view, n].tolist():
                if step < 0:
                    break
                codes_C = drawing.codes_VNC[view, n].clone()
                codes_C[FIRST_STEP:] = -1
                codes_C[FIRST_STEP] = step
                alone = WaveformTable(drawing.values_VNP[view, n][None, None], codes_C[None, None])
                y_T = augment_waveforms(y_T[None], alone)[0, 0]
            torch.testing.assert_close(together[view, n], y_T, atol=1e-7, rtol=0)


def test_clips_without_an_operator_come_back_untouched_and_the_input_is_not_written():
    x_NT = sound(3)
    kept = x_NT.clone()
    none = dataclasses.replace(drawn(count=3), codes_VNC=torch.full((2, 3, len(CODES)), -1))
    assert torch.equal(augment_waveforms(x_NT, none), x_NT.expand(2, 3, LENGTH))
    augment_waveforms(x_NT, drawn(count=3))
    assert torch.equal(x_NT, kept)


def test_the_vocoder_waits_for_everything_else():
    groups = schedule(drawn(count=64).steps_VNK.flatten(0, 1).numpy())
    slow = [OPERATORS[op] for op, _ in groups if OPERATORS[op] in ("pitch_shift", "time_stretch")]
    assert len(slow) <= 4
    assert sum(len(rows) for _, rows in groups) == int((drawn(count=64).steps_VNK >= 0).sum())


def test_wrong_clips_are_named():
    with pytest.raises(ValueError, match=r"x_NT: expected a floating tensor \(4, T\)"):
        augment_waveforms(sound(3), drawn(count=4))
    with pytest.raises(ValueError, match="more than 1024 samples per clip, received 500"):
        augment_waveforms(sound(4)[:, :500], drawn(count=4))

"""Tones: the published equations, independent factors, keyed and restartable batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastssl.augment.audio_policies import AUDIO_POLICIES
from fastssl.augment.waveform_table import OPERATORS
from fastssl.data import tones
from fastssl.data.sources import open_source
from fastssl.data.tones import FACTORS, TonesSource

CPU = torch.device("cpu")


def clips(*, timbre=0, pitch=9, octave=1, envelope=2, modulation=0, noise=0, count=1, seed=0):
    factor_NK = np.array([[timbre, pitch, octave, envelope, modulation, noise]] * count)
    index_N = np.arange(count)
    return tones.draw_clips(factor_NK, seed=seed, epoch=0, index_N=index_N).double()


def spectrum(x_T: torch.Tensor) -> np.ndarray:
    return torch.fft.rfft(x_T[4000:12_000] * torch.hann_window(8000)).abs().numpy()  # 2 Hz a bin


@pytest.mark.parametrize(("pitch", "octave"), [(9, 1), (0, 0), (11, 2)])
def test_a_tone_has_its_pitch(pitch, octave):
    expected = 440 * 2 ** (octave - 1 + (pitch - 9) / 12)
    for x_T in clips(pitch=pitch, octave=octave, count=3):
        hertz = np.argmax(np.abs(np.fft.rfft(x_T[4000:12_000], 1 << 18))) * 16_000 / (1 << 18)
        assert abs(1200 * np.log2(hertz / expected)) < 21  # detuned by 20 cents at most


def test_timbres_have_their_harmonics():
    for timbre, law in enumerate((None, lambda h: 1 / h, lambda h: (h % 2) / h)):
        size = spectrum(clips(timbre=timbre, pitch=0, octave=0)[0])
        base = int(np.argmax(size[:100]))
        harmonic = [np.linalg.norm(size[h * base - 8 : h * base + 9]) for h in range(1, 7)]
        wanted = [1, 0, 0, 0, 0, 0] if law is None else [law(h) for h in range(1, 7)]
        assert np.abs(np.array(harmonic) / harmonic[0] - wanted).max() < 0.02, timbre


def test_no_harmonic_folds_back_at_a_lower_rate():
    """A bright B5 (988 Hz) at 8 kHz: harmonics 1 to 3 alone, where 5 to 16 would alias."""
    bright_NK, where = np.array([[4, 11, 2, 2, 0, 0]]), {"epoch": 0, "index_N": np.arange(1)}
    clip_NT = tones.draw_clips(bright_NK, seed=0, samples=8000, sample_rate=8000, **where)
    size = torch.fft.rfft(clip_NT[0, 2000:6000].double() * torch.hann_window(4000)).abs().numpy()
    base = np.argmax(size[:600])  # 2 Hz a bin
    for h in (1, 2, 3):
        size[h * base - 12 : h * base + 13] = 0
    assert size.max() < 1  # the peak is about 115


def test_horners_rule_is_the_sum_of_sines():
    unit_NH = np.random.default_rng(0).random((2, 16))
    time_T = torch.arange(2000, dtype=torch.float64) / 16_000
    hertz_N = np.array([200.0, 433.3])
    turned_NH = unit_NH * np.exp(1j * (2 * np.pi * unit_NH - np.pi / 2))
    got = tones._carrier(time_T, hertz_N, turned_NH, np.array([0, 1]))
    for n in range(2):
        wave = np.sin(2 * np.pi * 5.5 * time_T.numpy()) / (2 * np.pi * 5.5)
        theta = 2 * np.pi * hertz_N[n] * (time_T.numpy() + n * (2 ** (40 / 1200) - 1) * wave)
        expected = sum(
            unit_NH[n, h] * np.sin((h + 1) * theta + 2 * np.pi * unit_NH[n, h]) for h in range(16)
        )
        assert np.abs(got[n].numpy() - expected).max() < 1e-4


def test_noise_envelope_and_modulation_are_heard():
    quiet, loud = (clips(noise=n)[0] for n in (0, 2))
    floor = [np.median(spectrum(x)) / spectrum(x).max() for x in (quiet, loud)]
    assert 20 < floor[1] / floor[0] < 50  # 30 dB
    energy = [clips(envelope=e)[0].view(10, 1600).square().mean(1) for e in range(4)]
    assert (energy[0].diff() < 0).all() and energy[1][9] > 10 * energy[1][1]
    assert (energy[3].max() / energy[3].min()) > 100  # pulses
    beat = clips(modulation=2)[0].square().view(100, 160).mean(1).log()
    assert beat[20:80].std() > 3 * clips()[0].square().view(100, 160).mean(1).log()[20:80].std()


def test_factors_are_uniform_and_independent():
    factor_NK = tones.draw_factors(np.arange(20_000), seed=0, split="train")
    for column, classes in zip(factor_NK.T, FACTORS.values(), strict=True):
        share = np.bincount(column, minlength=len(classes)) / len(column)
        assert len(share) == len(classes) and np.abs(share - 1 / len(classes)).max() < 0.01
    assert np.abs(np.corrcoef(factor_NK.T) - np.eye(len(FACTORS))).max() < 0.03
    test = tones.draw_factors(np.arange(200), seed=0, split="test")
    assert (test != factor_NK[:200]).any(axis=1).mean() > 0.9


def test_a_clip_depends_on_its_key_alone():
    source = open_source("tones", seed=3)
    one = source.clips(np.array([5, 9]), split="train", seed=1)
    other = source.clips(np.array([9]), split="train", seed=1)
    torch.testing.assert_close(one[1], other[0], atol=1e-6, rtol=0)
    again = source.clips(np.array([9]), split="train", seed=1, epoch=1)
    assert (again - other).abs().max() > 0.01


def test_batches_are_the_same_after_a_restart_and_by_shards():
    source = open_source("tones", seed=7)
    assert source.image_shape == (1, 128, 32)
    options = {"batch_size": 6, "seed": 7, "device": CPU}
    straight = source.batches(start_step=0, **options)
    seen = [next(straight) for _ in range(3)]
    straight.close()
    restarted = source.batches(start_step=2, **options)
    again = next(restarted)
    restarted.close()
    half = source.batches(start_step=2, shard=(1, 2), **options)
    part = next(half)
    half.close()
    assert torch.equal(again.index_N, seen[2].index_N)
    assert all(map(torch.equal, again.views, seen[2].views))
    assert again.views[0].shape == (6, 16_000)
    assert torch.equal(part.index_N, again.index_N[3:])
    table = again.table.waveforms
    assert table.labels().shape == (2, 6, 7)
    assert torch.equal(part.table.waveforms.codes_VNC, table.codes_VNC[:, 3:])


def test_labels_of_every_factor():
    source = open_source("tones", seed=7)
    for factor, classes in FACTORS.items():
        labelled = source.labelled("test", 10, factor=factor)
        assert labelled.names == classes and labelled.target.shape == (10,)
    first, again = (torch.cat(list(source.labelled("test", 10).images(4))) for _ in range(2))
    assert first.shape == (10, 1, 128, 32) and torch.equal(first, again)
    with pytest.raises(ValueError, match="--factor: expected one of timbre, .*received 'loudness'"):
        source.labelled("test", factor="loudness")


def test_views_are_finite_where_silence_meets_the_vocoder():
    """Sample 1 of step 9: a faded, masked clip whose spectrum underflows, then stretched."""
    batches = open_source("tones").batches(
        batch_size=16, seed=0, start_step=9, device=torch.device("cpu")
    )
    batch = next(batches)
    batches.close()
    assert all(view.isfinite().all() for view in batch.views)


def test_amortised_views_follow_the_bits_of_their_step():
    """No operator of a group whose bit is 0 runs, and steps differ in their bits."""
    source = open_source("tones", augment="amortised-audio")
    policy, seen = AUDIO_POLICIES["amortised-audio"], set()
    for step in range(3):
        table = source.batch(np.arange(4), seed=0, epoch=0, step=step).table
        bits = tuple(int(bit) for bit in table.bits_K)
        assert policy.corners[int(table.corner)] == bits
        seen.add(bits)
        for bit, group in zip(bits, policy.groups, strict=True):
            ran = table.labels_VNO[..., [OPERATORS.index(name) for name in group]]
            assert bit or not ran.any()
    assert len(seen) > 1


def test_a_policy_of_images_is_refused():
    with pytest.raises(
        ValueError, match="--augment: expected one of mtslvr, .*did you mean 'clar'"
    ):
        open_source("tones", augment="clar2")


def test_views_to_look_at_are_keyed_by_their_draw_and_one_operator_can_run_alone():
    part = TonesSource().labelled("test", 4)

    def views(draw, only=None, batch_size=4):
        return torch.cat(list(part.redrawn(batch_size, draw=draw, only=only)))

    clean = torch.cat(list(part.images(4)))
    assert torch.equal(views(1), views(1))
    off = (views(1) - views(1, batch_size=1)).abs() > 0.01  # dB; FFTs round by the batch
    assert off.float().mean() < 0.01
    assert not torch.equal(views(1), views(2))
    masked = (views(1, "time_mask") - clean).abs() > 1e-3
    assert 0 < masked.float().mean() < 0.3, "a mask covers an eighth of the clip at most"
    assert part.varied == TonesSource().views.policy.operators


def test_the_identity_tells_other_clips_and_not_other_labels():
    def identity(limit=4, split="test", **options):
        return TonesSource(**options).labelled(split, limit).identity()

    same = identity()
    assert same == identity(factor="octave")
    assert len({same, identity(5), identity(split="train"), identity(seed=1)}) == 4

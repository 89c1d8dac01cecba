"""The front end is torchaudio's to rounding, and compiles into one graph."""

from __future__ import annotations

import math

import pytest
import torch
import torchaudio

from fastssl.nn.logmel import LogMel, MelMagnitudePhase, mel_filterbank

SIZES = [(16_000, 1024, 512, 128), (16_000, 400, 160, 64), (44_100, 2048, 512, 128)]


def sound(rate: int = 16_000) -> torch.Tensor:
    return 0.1 * torch.randn(3, rate, generator=torch.manual_seed(0))


@pytest.mark.parametrize(("rate", "n_fft", "hop", "bands"), SIZES)
@pytest.mark.filterwarnings("ignore:At least one mel filterbank has all zero values")
def test_log_mel_equals_torchaudios(rate, n_fft, hop, bands):
    sizes = {"n_fft": n_fft, "hop_length": hop, "n_mels": bands}
    theirs = torchaudio.transforms.MelSpectrogram(rate, **sizes)
    ours = LogMel(sample_rate=rate, n_fft=n_fft, hop=hop, n_mels=bands)
    bank = mel_filterbank(sample_rate=rate, n_fft=n_fft, n_mels=bands)
    exact = theirs.double()
    exact.mel_scale.fb = torch.from_numpy(bank)
    torch.testing.assert_close(
        torch.from_numpy(bank).float(),
        torchaudio.functional.melscale_fbanks(n_fft // 2 + 1, 0, rate // 2, bands, rate),
        atol=5e-5,
        rtol=0,
    )  # theirs is computed in float32
    expected = 10 * torch.log10(exact(sound(rate).double()) + 2**-52)
    got = ours(sound(rate))
    assert got.shape == (3, 1, bands, 1 + rate // hop)
    torch.testing.assert_close(got[:, 0].double(), expected, atol=1e-3, rtol=0)  # of a dB


def test_three_channels_are_the_papers():
    x_NT = sound().double()
    front = MelMagnitudePhase().double()
    got = front(x_NT)
    assert got.shape == (3, 3, 128, 32)
    ones = torch.ones(1024, dtype=torch.float64)
    spectrum = torch.stft(x_NT, 1024, 512, window=ones, return_complex=True)
    bank = torch.from_numpy(mel_filterbank(sample_rate=16_000, n_fft=1024, n_mels=128))
    bank = bank.float().double()  # the module keeps it in float32
    re, im = bank.T @ spectrum.real, bank.T @ spectrum.imag
    torch.testing.assert_close(got[:, 1], 10 * torch.log10(torch.hypot(re, im) + 2**-52))
    torch.testing.assert_close(got[:, 2], torch.atan2(im, re))
    torch.testing.assert_close(got[:, 0], LogMel().double()(x_NT)[:, 0])
    assert got[:, 2].abs().max() <= math.pi


@pytest.mark.parametrize("front", [LogMel, MelMagnitudePhase])
@pytest.mark.filterwarnings("ignore")  # of the compiler: numbers of cores, TF32
def test_the_front_end_is_one_graph(front):
    torch._dynamo.reset()
    module = front()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(sound()), module(sound()), atol=1e-4, rtol=1e-4)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="expected positive integers, received 16000, 1024, 0"):
        LogMel(hop=0)
    with pytest.raises(ValueError, match="T over 512, received"):
        LogMel()(torch.zeros(2, 512))

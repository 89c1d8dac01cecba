"""A folder of sounds: what decodes is used, the rest is named, and batches are step-exact."""

from __future__ import annotations

import os
import shutil
import subprocess

import numpy as np
import pytest
import soundfile
import torch
import torchaudio.functional as taf

from fastssl.data import audio_decode
from fastssl.data.audio_decode import DaliAudio, check_audio, decode_audio, resample
from fastssl.data.audio_folder import AudioFolderSource
from fastssl.data.audio_views import AudioViews
from fastssl.data.audio_windows import count_windows, cut, normalised
from fastssl.data.headers import BadFile
from fastssl.data.sources import open_source

CPU = torch.device("cpu")
BAD = {"low/empty.wav", "low/text.flac", "low/cut.flac", "low/nan.wav", "high/cut.wav"}
FILES = (
    ("a.wav", 16_000, 1, 0.7), ("b.wav", 44_100, 2, 1.4), ("c.flac", 22_050, 1, 2.5),
    ("d.ogg", 48_000, 2, 1.1), ("e.mp3", 32_000, 1, 1.3), ("F.WAV", 8_000, 1, 1.9),
)  # fmt: skip


def tone(rate: int, channels: int, seconds: float, hertz: float) -> np.ndarray:
    time = np.arange(int(rate * seconds)) / rate
    return np.repeat(0.3 * np.sin(2 * np.pi * hertz * time)[:, None], channels, axis=1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("sounds")
    for label, hertz in (("low", 220.0), ("high", 880.0)):
        (root / label).mkdir()
        for name, *kind in FILES:
            soundfile.write(root / label / name, tone(kind[0], kind[1], kind[2], hertz), kind[0])
    low = root / "low"
    (low / "empty.wav").write_bytes(b"")
    (low / "text.flac").write_text("not a sound")
    whole = (low / "c.flac").read_bytes()
    (low / "cut.flac").write_bytes(whole[: len(whole) // 2])
    sample = tone(16_000, 1, 1.2, 220.0)
    sample[77] = np.nan
    soundfile.write(low / "nan.wav", sample, 16_000, subtype="FLOAT")
    (root / "high" / "cut.wav").write_bytes((low / "a.wav").read_bytes()[:30])
    return root


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_a_changed_rate_keeps_the_sound(rate):
    sound = torch.from_numpy(tone(rate, 1, 1.0, 440.0)[:, 0]).float()
    got = resample(sound, rate, 16_000)
    assert len(got) == 16_000
    expected = torch.from_numpy(tone(16_000, 1, 1.0, 440.0)[:, 0]).float()
    assert (got - expected)[200:-200].abs().max() < 1e-3
    noise = torch.randn(rate, generator=torch.manual_seed(0))
    theirs = taf.resample(noise, rate, 16_000, lowpass_filter_width=64)
    ours = resample(noise, rate, 16_000)
    assert (ours - theirs).std() < 0.2 * theirs.std()  # they differ at the edge of the band


@pytest.mark.parametrize("rate", [15_999, 22_254, 383_983])
def test_rates_without_a_common_divisor_take_little_memory(rate):
    sound = torch.from_numpy(tone(rate, 1, 1.0, 440.0)[:, 0]).float()
    got = resample(sound, rate, 16_000)
    assert len(got) == 16_000
    expected = torch.from_numpy(tone(16_000, 1, 1.0, 440.0)[:, 0]).float()
    assert (got - expected)[200:-200].abs().max() < 1e-3


def test_between_phases_is_as_good_as_all_weights():
    noise = torch.randn(44_100, generator=torch.manual_seed(0))
    torch.testing.assert_close(
        audio_decode._by_phase(noise, 441, 160), resample(noise, 44_100, 16_000), atol=2e-4, rtol=0
    )


@pytest.mark.parametrize("rate", [999_983, 2_147_483_629, 3_999])
def test_a_rate_that_no_recorder_has_is_refused(tmp_path, rate):
    soundfile.write(tmp_path / "x.wav", tone(8_000, 1, 0.1, 440.0), 8_000)
    content = bytearray((tmp_path / "x.wav").read_bytes())
    content[24:28] = rate.to_bytes(4, "little")
    (tmp_path / "x.wav").write_bytes(content)
    with pytest.raises(BadFile, match=f"{rate} Hz is not within 4000 to 384000 Hz"):
        check_audio(str(tmp_path / "x.wav"))


@pytest.mark.parametrize("name", ["x.wav", "x.rf64", "x.aiff"])
def test_a_sound_cut_after_its_header_is_bad(tmp_path, name):
    path, kind = tmp_path / name, name[2:].upper()
    soundfile.write(path, tone(8_000, 1, 1.0, 440.0), 8_000, format=kind, subtype="PCM_16")
    assert check_audio(str(path)).frames == 8_000
    path.write_bytes(path.read_bytes()[:9_000])
    with pytest.raises(BadFile, match="cut off: .* of 160.. bytes of sound are there"):
        check_audio(str(path))


def test_a_sound_of_unknown_length_from_a_pipe_is_good(tmp_path):
    soundfile.write(tmp_path / "x.wav", tone(8_000, 1, 0.1, 440.0), 8_000)
    content = bytearray((tmp_path / "x.wav").read_bytes())
    content[4:8] = content[40:44] = b"\xff" * 4
    (tmp_path / "x.wav").write_bytes(content)
    assert check_audio(str(tmp_path / "x.wav")).frames == 800


def test_a_pipe_and_a_device_are_no_sounds(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "zero.wav").symlink_to("/dev/zero")
    for name in ("pipe.wav", "zero.wav"):
        with pytest.raises(BadFile, match="not a regular file"):
            check_audio(str(tmp_path / name))


def test_too_many_samples_and_too_little_memory_are_the_files_fault(tmp_path, monkeypatch):
    path = str(tmp_path / "x.wav")
    soundfile.write(path, tone(8_000, 6, 0.1, 440.0), 8_000)
    header = check_audio(path)
    with monkeypatch.context() as patch:
        patch.setattr(audio_decode, "_MOST_SAMPLES", 4_000)
        with pytest.raises(BadFile, match="800 x 6 channels are over the limit of 4000 samples"):
            check_audio(path)

    def full(*_):
        raise MemoryError

    monkeypatch.setattr(audio_decode, "resample", full)
    with pytest.raises(BadFile, match="more memory than is left"):
        decode_audio(path, header, rate=16_000)


def test_dali_and_soundfile_hear_the_same(corpus):
    dali = DaliAudio(rate=16_000, workers=2)
    paths = [corpus / "low" / name for name in ("a.wav", "b.wav", "c.flac", "d.ogg", "F.WAV")]
    for path, sound in zip(paths, dali.decode([p.read_bytes() for p in paths]), strict=True):
        other = decode_audio(str(path), check_audio(str(path)), rate=16_000)
        assert abs(len(sound) - len(other)) <= 1, path
        middle = slice(200, min(len(sound), len(other)) - 200)
        assert (sound[middle] - other[middle]).abs().max() < 5e-3, path
    good = paths[0].read_bytes()
    sounds = dali.decode([b"rubbish", good])
    assert sounds[0] is None and sounds[1] is not None


@pytest.mark.parametrize("backend", ["dali", "soundfile"])
def test_bad_files_are_named_and_the_rest_is_used(corpus, backend):
    source = AudioFolderSource(corpus, backend=backend)
    for epoch in range(2):
        index_N, clip_NT = source.clips(np.arange(source.num_samples), seed=0, epoch=epoch)
        assert clip_NT.shape == (source.num_samples, 16_000) and torch.isfinite(clip_NT).all()
        assert clip_NT.square().mean(1).min() > 0.02  # everyone is a tone, none is silence
    assert {path for path, _ in source.skipped()} == BAD
    report = source.report()
    assert report["num_files"] == 2 * len(FILES) + len(BAD) and len(report["skipped"]) == len(BAD)
    assert not BAD & {source._paths[i] for i in index_N}


def test_batches_are_step_exact_whoever_found_the_bad_files(corpus):
    options = {"batch_size": 5, "seed": 2, "device": CPU}
    straight = AudioFolderSource(corpus).batches(start_step=0, **options)
    seen = [next(straight) for _ in range(5)]
    straight.close()
    restarted = AudioFolderSource(corpus).batches(start_step=3, **options)
    for expected in seen[3:]:
        batch = next(restarted)
        assert torch.equal(batch.index_N, expected.index_N)
        assert all(map(torch.equal, batch.views, expected.views))
    restarted.close()
    assert seen[0].views[0].shape == (5, 1, 128, 32)
    assert seen[0].table.waveforms.labels().shape == (2, 5, 7)


def test_a_short_file_is_repeated_and_a_long_one_cropped_anew_each_epoch(corpus):
    source = AudioFolderSource(corpus, views=AudioViews(seconds=1.2))
    named = {name: source._paths.index(f"low/{name}") for name in ("a.wav", "c.flac")}
    _, short = source.clips(np.array([named["a.wav"]]), seed=0, epoch=0)
    assert torch.equal(short[0, 11_200:], short[0, : 19_200 - 11_200])
    long = [source.clips(np.array([named["c.flac"]]), seed=0, epoch=e)[1] for e in range(2)]
    assert not torch.equal(*long)


def test_labels_come_from_the_folders(corpus):
    source = open_source(str(corpus))
    assert source.kind == "audio-folder"
    train, test = source.labelled("train"), source.labelled("test")
    assert train.names == ("high", "low")
    assert len(train.target) + len(test.target) == 2 * len(FILES)
    images = torch.cat(list(train.images(4)))
    assert images.shape == (len(train.target), 1, 128, 32)
    loudest = images[:, 0].mean(-1).argmax(1)
    assert loudest[train.target == 1].max() < loudest[train.target == 0].min()  # low below high


@pytest.mark.parametrize(("length", "count"), [(1, 1), (9, 1), (10, 1), (11, 2), (20, 2), (25, 3)])
def test_a_sound_is_cut_into_windows_and_the_rest_repeated(length, count):
    sound = torch.arange(1.0, length + 1)
    found = cut(sound, length=length, samples=10)
    assert len(found) == count == count_windows(length, 10)
    for w in range(count):
        rest = sound[10 * w : 10 * w + 10]
        assert found[w].tolist() == [float(rest[t % len(rest)]) for t in range(10)]
    one_off = cut(torch.cat([sound, sound]), length=length, samples=10)  # decoders differ by one
    assert torch.equal(one_off, found)
    assert len(cut(sound[: max(1, length - 1)], length=length, samples=10)) == count


def test_windows_hold_the_whole_sound_with_its_class(corpus):
    source = AudioFolderSource(corpus, backend="soundfile")
    plain = source.labelled("train")
    part, clip_W = source.windowed("train", seconds=0.5, normalise="clip")
    paths = [source._paths[i] for i in source._good("train", None)]
    assert clip_W.unique().tolist() == list(range(len(plain.target)))
    assert torch.equal(part.target, plain.target[clip_W])
    lasting = {name: seconds for name, *_, seconds in FILES}
    wanted = [-(-round(16_000 * lasting[path.split("/")[1]]) // 8_000) for path in paths]
    expected = torch.tensor(wanted)
    assert (torch.bincount(clip_W) - expected).abs().max() <= 1  # MP3 files have a lead-in
    images = torch.cat(list(part.images(7)))
    assert images.shape == (len(clip_W), 1, 128, 16)
    clip = paths.index(next(p for p in paths if p.endswith("c.flac")))
    path = str(corpus / paths[clip])
    sound = normalised(decode_audio(path, check_audio(path), rate=16_000), "clip")
    assert sound.std() == pytest.approx(1, abs=1e-3)
    expected = source.views.clean(cut(sound, length=len(sound), samples=8_000))
    torch.testing.assert_close(images[clip_W == clip], expected)
    raw, _ = source.windowed("train", seconds=0.5, normalise="none")
    assert (images - torch.cat(list(raw.images(64)))).amax() > 5  # louder
    assert part.identity() != raw.identity()
    assert part.at_once == 1000


def test_what_cannot_be_used_is_refused_by_name(corpus, tmp_path):
    (tmp_path / "x.wav").write_bytes(b"")
    with pytest.raises(ValueError, match=r"x\.wav: the file is empty"):
        AudioFolderSource(tmp_path)
    with pytest.raises(ValueError, match="more than --max-bad-files 0.1 allows"):
        AudioFolderSource(corpus, max_bad=0.1)


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_spoken_words(tmp_path):
    for word in ("seven", "river"):
        (tmp_path / word).mkdir()
        for voice in ("en", "en+f3", "de", "en+m7"):
            file = tmp_path / word / f"{voice}.wav"
            command = ["espeak-ng", "-v", voice, "-s", "150", "-w", str(file), word]
            subprocess.run(command, check=True, capture_output=True)
    source = open_source(str(tmp_path))
    assert source.report()["skipped"] == [] and source.num_samples == 8
    batches = source.batches(batch_size=8, seed=0, device=CPU)
    batch = next(batches)
    batches.close()
    assert batch.views[0].shape == (8, 16_000) and torch.isfinite(batch.views[0]).all()
    assert set(source.labelled("train").names) == {"river", "seven"}

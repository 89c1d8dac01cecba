"""Bugs in waveform augmentation and in audio data."""

from __future__ import annotations

from tests.wrong.mutant import Mutant

VOCODER, WAVEFORM = "tests/augment/test_phase_vocoder.py", "tests/augment/test_waveform.py"
LOGMEL, TONES = "tests/augment/test_logmel.py", "tests/data/test_tones.py"
FOLDER = "tests/data/test_audio_folder.py"


def _audio(name: str, file: str, old: str, new: str, tests: str) -> Mutant:
    return Mutant(f"audio-{name}", f"fastssl/{file}.py", old, new, (tests,))


MUTANTS = (
    _audio("phase-does-not-advance", "augment/phase_vocoder",
           "phase_RB = phase_RB * turn_RFB[row, at]", "phase_RB = phase_RB * 1", VOCODER),
    _audio("aliases-stay", "augment/phase_vocoder",
           "np.minimum(1.0, 1.0 / factor_R)", "np.minimum(1.0, 1.0 / factor_R) * 0 + 1", VOCODER),
    _audio("pitch-moves-the-other-way", "augment/phase_vocoder",
           "np.exp2(semitones_R.astype(np.float64) / 12)",
           "np.exp2(-semitones_R.astype(np.float64) / 12)", VOCODER),
    _audio("edges-are-not-divided", "augment/phase_vocoder",
           "sum_RGH[where] /= (share_XQ @ squares_QH).clamp(min=1e-9)", "pass", VOCODER),
    _audio("noise-level-in-amplitude", "augment/keyed_noise", "[:, None] / 10)",
           "[:, None] / 20)", WAVEFORM),
    _audio("noise-ignores-its-key", "augment/keyed_noise", "counter_K ^ key_R[:, None]",
           "counter_K ^ (0 * key_R[:, None])", WAVEFORM),
    _audio("shift-to-the-left", "augment/waveform", '-(table.value("shift")',
           '(table.value("shift")', WAVEFORM),
    _audio("views-run-different-operators", "augment/audio_policies",
           '"" if policy.same_operators else f"/view{view}"', 'f"/view{view}"', WAVEFORM),
    _audio("order-is-always-the-labels", "augment/audio_policies",
           'np.argsort(rank_NK, axis=1, kind="stable")',
           'np.argsort(rank_NK > 1, axis=1, kind="stable")', WAVEFORM),
    _audio("epoch-does-not-change-the-table", "augment/audio_policies",
           '{"seed": seed, "epoch": epoch,', '{"seed": seed, "epoch": 0,', WAVEFORM),
    _audio("tones-alias-at-lower-rates", "data/tones", "_HIGHEST * sample_rate",
           "_HIGHEST * 16_000", TONES),
    _audio("mel-of-the-magnitude", "nn/logmel", "(re.square() + im.square()) @ self.bank_BM",
           "(re.square() + im.square()).sqrt() @ self.bank_BM", LOGMEL),
    _audio("tone-an-octave-off", "data/tones", "factor_NK[:, 2] + 3 - 4", "factor_NK[:, 2] + 4 - 4",
           TONES),
    _audio("vibrato-for-all", "data/tones", "np.where(modulation_N == 1,",
           "np.where(modulation_N >= 0,", TONES),
    _audio("crop-does-not-move", "data/audio_folder", "begin = int(place *", "begin = int(0 *",
           FOLDER),
    _audio("front-end-in-16-bits", "nn/hearing", "enabled=False", "enabled=True",
           "tests/methods/test_hearing.py"),
    _audio("front-end-is-always-log-mel", "recipes/encoders",
           "hear(method, FRONTS[run.train.front]())", 'hear(method, FRONTS["logmel"]())',
           "tests/methods/test_hearing.py"),
    _audio("rest-of-a-sound-is-dropped", "data/audio_windows",
           "max(1, -(-length // samples))", "max(1, length // samples)", FOLDER),
    _audio("windows-start-anew-in-every-sound", "data/audio_folder",
           "np.cumsum(count_n) - count_n", "0 * count_n", FOLDER),
    _audio("numbers-need-not-be-finite", "data/audio_decode",
           "if not torch.isfinite(sample_L).all():", "if False:", FOLDER),
)  # fmt: skip

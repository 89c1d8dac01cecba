"""Every verb through the command on one tiny run: Spirograph, and a folder of classes."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from fastssl.data.sources import open_source
from fastssl.evaluate import VERBS
from fastssl.evaluate import main as evaluate
from fastssl.nn.backbones import build_backbone
from fastssl.recipes import feature_cache
from fastssl.recipes.assess import RECORDS
from fastssl.recipes.encoders import encoder_of

FEW = ["--train-images", "300", "--test-images", "100", "--device", "cpu"]
QUICK = {
    "linear-sgd": ["--epochs", "2"],
    "mlp": ["--epochs", "2", "--hidden-dims", "8", "8", "--batch-size", "64"],
    "finetune": ["--epochs", "1", "--batch-size", "64"],
    "fractions": ["--fractions", "0.5", "1"],
}


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    """A copy of the finished run, to score."""
    folder = tmp_path_factory.mktemp("scored") / "run"
    shutil.copytree(finished_run, folder)
    return folder


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Three classes of 30 small pictures, noise about a colour each."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("colours")
    for name, colour in (("red", (200, 60, 60)), ("green", (60, 200, 60)), ("blue", (60, 60, 200))):
        (root / name).mkdir()
        for number in range(30):
            picture = np.clip(rng.normal(colour, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def scored(run, capsys):
    """``scored(verb, *flags)`` -> the record of a verb that succeeds."""

    def score(verb, *flags, folder=run):
        status = evaluate([verb, "--run", str(folder), *map(str, flags)])
        said = capsys.readouterr()
        assert status == 0, said.err
        record = json.loads((folder / RECORDS).read_text().splitlines()[-1])
        assert record["readout"] == verb
        score.out, score.err = said.out, said.err
        return record

    return score


@pytest.mark.parametrize(
    ("verb", "flags", "metrics"),
    [
        ("linear-sgd", QUICK["linear-sgd"], {"mse", "mse/m", "r2", "weight_decay"}),
        ("mlp", QUICK["mlp"], {"mse", "r2", "weight_decay"}),
        ("finetune", QUICK["finetune"], {"mse", "r2", "best_epoch", "images"}),
        ("fractions", QUICK["fractions"], {"mse@0.5", "r2@1", "images@0.5"}),
        ("robustness", ["--shift", "h", "--amounts", "0", "0.3"], {"mse@h=0.3", "mse_fixed@h=0.3"}),
        ("sensitivity", ["--parts", "2"], {"ratio/h", "ratio/b_b/part1"}),
    ],
)
def test_verbs_score_continuous_targets(verb, flags, metrics, scored):
    record = scored(verb, *flags, *FEW)
    assert metrics <= record["metrics"].keys()
    assert all(np.isfinite(value) for value in record["metrics"].values())
    assert record["protocol"]["train_images"] == 300
    for key in record["protocol"]:
        assert f"  {key}: " in scored.out


@pytest.mark.parametrize(
    ("verb", "flags", "metrics"),
    [
        ("knn", [], {"knn_top1"}),
        ("linear", [], {"linear_top1", "l2"}),
        ("linear-sgd", QUICK["linear-sgd"], {"linear_sgd_top1", "weight_decay"}),
        ("mlp", QUICK["mlp"], {"mlp_top1"}),
        ("finetune", [*QUICK["finetune"], "--fraction", "0.5"], {"finetune_top1", "best_epoch"}),
        ("fractions", QUICK["fractions"], {"linear_top1@0.5", "linear_top1@1"}),
        ("few-shot", "--ways 3 --shots 1 --queries 2 --episodes 20".split(), {"ridge_top1"}),
        ("weight-shares", [], {"share/part0", "share/part1"}),
        ("sensitivity", [], {"ratio/jitter", "ratio/crop"}),
        ("robustness", ["--amounts", "0", "1"], {"linear_top1@jitter=1"}),
        ("averaging", ["--averages", "1", "2"], {"linear_top1@2"}),
        ("meter", ["--draws", "2"], {"cosine/jitter", "variance_ratio"}),
    ],
)
def test_verbs_score_classes_of_a_folder(verb, flags, metrics, scored, colours):
    record = scored(verb, *flags, "--data", colours, "--device", "cpu")
    assert metrics <= record["metrics"].keys()
    for name, value in record["metrics"].items():
        assert np.isfinite(value) and (value <= 1 or "top1" not in name)


def test_every_verb_is_run_by_a_test():
    cases = [test_verbs_score_continuous_targets, test_verbs_score_classes_of_a_folder]
    seen = {row[0] for case in cases for mark in case.pytestmark for row in mark.args[1]}
    elsewhere = {
        "ridge",
        "alpha",
        "invariance",
        "compression",
    }  # test_spirograph_run.py, test_compression.py
    assert set(VERBS) - seen == elsewhere


def test_colours_are_told_apart_and_shares_add_up(scored, colours):
    record = scored("linear", "--data", colours)
    assert record["metrics"]["linear_top1"] > 0.8
    shares = scored("weight-shares", "--data", colours)["metrics"]
    assert shares["share/part0"] + shares["share/part1"] == pytest.approx(1)
    tuned = scored("finetune", "--data", colours, "--fraction", "0.5", *QUICK["finetune"])
    assert 36 <= tuned["metrics"]["images"] <= 38, "half of 72, rounded up in each class"


def test_ridge_agrees_with_scikit_learn_on_features_of_the_loaded_export(run, scored):
    found = scored("ridge", *FEW)["metrics"]
    net = encoder_of(run)
    net.load_state_dict(load_file(run / "export" / "backbone.safetensors"))
    source, parts = open_source("spirograph", image_size=32, seed=0), []
    for split, count in (("train", 300), ("test", 100)):
        labelled = source.labelled(split, count)
        with torch.no_grad():
            parts.append((net.eval()(labelled.render(np.arange(count))).double(), labelled.target))
    (x, y), (test_x, test_y) = parts
    keep = x.std(0) > 0
    mean, spread = x.mean(0)[keep], x.std(0, unbiased=False)[keep]
    model = Ridge(alpha=found["lambda"] * 300, fit_intercept=True)
    model.fit(((x[:, keep] - mean) / spread).numpy(), y.double().numpy())
    guess = model.predict(((test_x[:, keep] - mean) / spread).numpy())
    mse = float(((guess - test_y.numpy()) ** 2).mean())
    assert found["mse"] == pytest.approx(mse, rel=1e-4)
    assert found["r2"] == pytest.approx(r2_score(test_y.numpy(), guess), rel=1e-3)


@pytest.fixture
def counted(monkeypatch):
    """A list that grows with every extraction of features."""
    calls, extract = [], feature_cache.extract
    monkeypatch.setattr(feature_cache, "extract", lambda *a: calls.append(1) or extract(*a))
    return calls


@pytest.fixture
def fresh(finished_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    return folder


def kept(folder):
    return sorted((folder / "evaluation").glob("features-*"))


def test_one_extraction_serves_several_verbs_with_the_same_numbers(fresh, scored, counted):
    plain = scored("ridge", *FEW, "--cache", "off", folder=fresh)
    assert len(counted) == 2 and not kept(fresh)
    first = scored("ridge", *FEW, folder=fresh)
    assert len(counted) == 4 and len(kept(fresh)) == 2
    second = scored("ridge", *FEW, folder=fresh)
    assert "2 extractions saved" in scored.out
    scored("alpha", *FEW, folder=fresh)
    scored("fractions", *QUICK["fractions"], *FEW, folder=fresh)
    assert len(counted) == 4
    assert plain["metrics"] == first["metrics"] == second["metrics"]


def test_other_images_other_weights_and_other_looks_are_extracted_anew(
    fresh, scored, counted, colours, tmp_path
):
    scored("ridge", *FEW, folder=fresh)
    scored("ridge", "--train-images", "200", "--test-images", "100", folder=fresh)
    assert len(counted) == 3
    scored("sensitivity", *FEW, folder=fresh)
    assert len(counted) == 9  # clean test images are kept, six nuisances are not
    mine = tmp_path / "mine"
    shutil.copytree(colours, mine)
    scored("knn", "--data", mine, folder=fresh)
    scored("knn", "--data", mine, folder=fresh)
    assert len(counted) == 11
    victim = mine / "red" / "0.png"
    Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(victim)
    scored("knn", "--data", mine, folder=fresh)
    assert len(counted) == 12, "only the split with the changed file"
    path = fresh / "export" / "backbone.safetensors"
    state = load_file(path)
    save_file({key: value * 2 for key, value in state.items()}, path)
    (fresh / "export" / "SHA256SUMS").unlink()
    scored("ridge", *FEW, folder=fresh)
    assert len(counted) == 14


@pytest.mark.parametrize(
    "damage", ["bit", "truncated", "empty", "header", "renamed", "nested", "folder", "link", "pipe"]
)
def test_a_damaged_cache_is_told_and_made_anew(damage, fresh, scored, counted, tmp_path, caplog):
    whole = scored("ridge", *FEW, folder=fresh)
    (first, second), told = kept(fresh), "cannot be used"
    content = bytearray(first.read_bytes())
    first.unlink()
    if damage == "bit":
        content[-5] ^= 1
        first.write_bytes(content)
    elif damage == "truncated":
        first.write_bytes(content[:-7])
    elif damage == "empty":
        first.touch()
    elif damage == "header":
        first.write_bytes((1 << 62).to_bytes(8, "little") + content[8:])
    elif damage == "renamed":
        shutil.copy(second, first)
    elif damage == "nested":
        first.write_bytes((60000).to_bytes(8, "little") + b"[" * 60000)
    elif damage == "folder":
        first.mkdir()
        told = "were not kept"
    elif damage == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        first.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(first)
    assert scored("ridge", *FEW, folder=fresh)["metrics"] == whole["metrics"]
    assert len(counted) == 3 and told in caplog.text and str(first) in caplog.text
    if damage != "folder":
        assert scored("ridge", *FEW, folder=fresh)["metrics"] == whole["metrics"]
        assert len(counted) == 3, "the new file is whole"


def test_a_cache_that_cannot_be_written_costs_a_line(fresh, scored, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_cache, "write_bytes", full)
    scored("ridge", *FEW, folder=fresh)
    assert "No space left" in caplog.text and not kept(fresh)


def test_the_oldest_features_go_first(fresh, scored, monkeypatch):
    scored("ridge", *FEW, folder=fresh)
    size = max(path.stat().st_size for path in kept(fresh))
    monkeypatch.setattr(feature_cache, "MOST_BYTES", 2 * size)
    scored("ridge", "--train-images", "200", "--test-images", "90", folder=fresh)
    assert sum(path.stat().st_size for path in kept(fresh)) <= 2 * size


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["weight-shares"], "needs classes"),
        (["few-shot"], "needs classes"),
        (["sensitivity", "--parts", "3"], "--parts: expected a divisor"),
        (["fractions", "--fractions", "0"], "--fractions: expected above 0"),
        (["finetune", "--lr", "0"], "--lr above 0"),
        (["finetune", "--views", "crop"], "--views crop: these data have no such views"),
        (["linear-sgd", "--epochs", "0"], "--epochs: expected above 0"),
        (["linear-sgd", "--lr", "1e30"], "the loss is not finite"),
        (["mlp", "--hidden-dims", "0"], "--hidden-dims: expected at least 1"),
        (["robustness", "--amounts", "1"], "needs --shift"),
        (["robustness", "--shift", "jitter", "--amounts", "1"], "--shift: expected one of: h, "),
        (["robustness", "--shift", "background", "--amounts", "2"], "leaves nothing for"),
        (["ridge", "--backbone", "resnet18"], "--backbone: goes with --weights"),
        (["ridge", "--weights", "x.safetensors"], "one of them"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(flags, told, run, capsys):
    assert evaluate([*flags, "--run", str(run), *FEW]) == 2
    said = capsys.readouterr().err
    assert told in said and len(said.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def wrapped(run, tmp_path_factory):
    """The run's encoder as another program would keep it: wrapped, with a head and a projector."""
    state = {
        f"module.backbone.{key}": value
        for key, value in load_file(run / "export" / "backbone.safetensors").items()
        if "num_batches_tracked" not in key
    }
    state["module.backbone.fc.weight"] = torch.zeros(10, 128)
    state["module.projector.0.weight"] = torch.zeros(4, 4)
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_file(state, path)
    return path


def foreign(path, *flags, verb="ridge", backbone="convnet", data="spirograph"):
    given = ["--weights", path, "--backbone", backbone, "--data", data, *FEW, *flags]
    return evaluate([verb, *map(str, given)])


@pytest.mark.parametrize("prefix", [[], ["--prefix", "module.backbone."]])
def test_a_file_of_weights_scores_as_the_run_does(
    prefix, wrapped, scored, tmp_path, capsys, caplog
):
    expected = scored("ridge", *FEW)["metrics"]
    assert foreign(wrapped, *prefix, "--json", tmp_path / "score.json") == 0
    record = json.loads((tmp_path / "score.json").read_text())
    assert record["metrics"] == expected and record["encoder"] == str(wrapped)
    assert "fc.weight" in caplog.text and "projector" in caplog.text
    assert not list(wrapped.parent.glob("*evaluation*"))


@pytest.mark.parametrize("name", ["resnet18", "timm/test_resnet"])
def test_encoders_of_torchvision_and_timm_are_scored(name, tmp_path, colours, capsys):
    state = {
        f"model.{key}": value.contiguous()
        for key, value in build_backbone(name, 32).state_dict().items()
    }
    state["model.fc.bias"] = torch.zeros(1000)
    save_file(state, tmp_path / "net.safetensors")
    flags = ["--image-size", "32"]
    path = tmp_path / "net.safetensors"
    assert foreign(path, *flags, verb="knn", backbone=name, data=colours) == 0
    assert "knn_top1" in capsys.readouterr().out


HOSTILE = {
    "missing": "keys are missing: ",
    "of another net": "keys are of another net: layer9",
    "shape": "expected the shape",
    "nan": "not finite",
    "text": "not a sound safetensors file",
    "empty": "not a sound safetensors file",
    "header": "not a sound safetensors file",
    "truncated": "not a sound safetensors file",
    "link": "symbolic link",
    "folder": "expected a file",
    "none": "No such file",
    "pipe": "expected a file",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(kind, run, tmp_path, capsys):
    path, whole = tmp_path / "net.safetensors", run / "export" / "backbone.safetensors"
    state = load_file(whole)
    first = next(key for key in state if key.endswith("weight"))
    if kind in ("missing", "of another net", "shape", "nan"):
        if kind == "missing":
            del state[first]
        elif kind == "of another net":
            state["layer9.weight"] = torch.zeros(2)
        elif kind == "shape":
            state[first] = torch.zeros(3, 3)
        else:
            state[first].view(-1)[0] = torch.nan
        save_file(state, path)
    elif kind == "link":
        path.symlink_to(whole)
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "none":
        content = whole.read_bytes()
        huge = (1 << 62).to_bytes(8, "little") + content[8:]
        made = {"text": b"hello " * 50, "empty": b"", "header": huge, "truncated": content[:-9]}
        path.write_bytes(made[kind])
    assert foreign(path) == 2
    said = capsys.readouterr().err.strip()
    assert HOSTILE[kind] in said and str(path) in said and len(said.splitlines()) == 1
    if kind == "missing":
        assert first in said


def test_weights_need_a_backbone_and_data(wrapped, capsys):
    assert evaluate(["ridge", "--weights", str(wrapped)]) == 2
    assert "--backbone NAME and --data" in capsys.readouterr().err
    assert evaluate(["ridge"]) == 2
    assert "--run DIR, or --weights FILE" in capsys.readouterr().err

"""Any encoder by name, its features without the head, and the two lines that load its export."""

from __future__ import annotations

import importlib.util
import runpy

import pytest
import torch
from safetensors.torch import save_file

from fastssl.nn import backbones
from fastssl.nn.backbones import build_backbone, resolve, small_stem, stem_name
from fastssl.nn.heads import projector
from fastssl.nn.snippet import loading_snippet

needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is an extra of its own"
)


@pytest.mark.parametrize(
    ("name", "size", "width"),
    [
        ("convnet", 32, 128),
        ("mlp", 8, 128),
        ("mlp-63", 8, 63),
        ("resnet18", 32, 512),
        ("resnet18", 64, 512),
        ("torchvision/mobilenet_v3_small", 64, 1024),
        ("vit_b_32", 64, 768),
        pytest.param("timm/resnet10t", 64, 512, marks=needs_timm),
        pytest.param("vit_tiny_patch16_224", 48, 192, marks=needs_timm),
    ],
)
def test_backbone_maps_images_to_vectors_of_known_width(name, size, width):
    model = build_backbone(name, size)
    assert model.num_features == width
    assert model.training
    with torch.no_grad():
        assert model.eval()(torch.rand(2, 3, size, size)).shape == (2, width)


def test_resnet_under_64_px_has_the_small_stem_and_keeps_its_resolution():
    small, large = build_backbone("resnet18", 32), build_backbone("resnet18", 64)
    assert small.conv1.kernel_size == (3, 3) and small.conv1.stride == (1, 1)
    assert large.conv1.kernel_size == (7, 7)
    with torch.no_grad():
        stem = small.maxpool(small.relu(small.bn1(small.conv1(torch.rand(2, 3, 32, 32)))))
    assert stem.shape == (2, 64, 32, 32)
    assert stem_name("resnet18", 32) != stem_name("resnet18", 64)


def test_the_head_is_gone_and_the_other_keys_are_torchvisions_own():
    from torchvision.models import resnet18

    theirs = resnet18().state_dict()
    ours = build_backbone("resnet18", 64).state_dict()
    assert set(theirs) - set(ours) == {"fc.weight", "fc.bias"}
    assert not set(ours) - set(theirs)


def test_unknown_name_suggests_close_ones():
    with pytest.raises(ValueError, match=r"backbone: .*'resnet81'; did you mean .*resnet"):
        build_backbone("resnet81", 32)


def test_unknown_name_says_which_extra_is_missing(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        backbones.importlib.util, "find_spec", lambda n: None if n == "timm" else found(n)
    )
    with pytest.raises(ValueError, match=r'timm models need pip install "fastssl\[timm\]"'):
        build_backbone("vit_tiny_patch16_224", 224)


@needs_timm
@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18.a1_in1k", "local-dir:/tmp", "../x"])
def test_names_that_would_fetch_something_are_refused(name):
    with pytest.raises(ValueError, match="backbone: expected"):
        build_backbone(name, 32)


@pytest.mark.parametrize(("name", "size"), [("vit_b_16", 40), ("alexnet", 32)])
def test_a_size_the_model_cannot_take_is_explained(name, size):
    with pytest.raises(ValueError, match=f"backbone: {name} cannot encode {size} px images"):
        build_backbone(name, size)


@needs_timm
def test_library_prefix_decides_where_both_have_the_name():
    assert resolve("resnet18") == ("torchvision", "resnet18")
    assert resolve("timm/resnet18") == ("timm", "resnet18")


def test_small_stem_refuses_what_is_no_resnet():
    with pytest.raises(ValueError, match="small_stem: expected a torchvision ResNet"):
        small_stem(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("convnet", 32),
        ("mlp-5", 8),
        ("resnet18", 32),
        ("resnet18", 96),
        ("vit_b_32", 64),
        pytest.param("timm/resnet10t", 64, marks=needs_timm),
        pytest.param("vit_tiny_patch16_224", 64, marks=needs_timm),
    ],
)
def test_loading_snippet_runs_and_gives_the_same_features(name, size, tmp_path):
    torch.manual_seed(0)
    trained = build_backbone(name, size)
    for buffer in trained.buffers():  # running statistics must travel too
        if buffer.is_floating_point():
            buffer.add_(0.25)
    path = tmp_path / "backbone.safetensors"
    save_file({k: v.contiguous() for k, v in trained.state_dict().items()}, path)
    snippet = loading_snippet(name, size, str(path))
    code = [line for line in snippet.splitlines() if not line.startswith(("import", "from"))]
    assert len(code) == 2
    (tmp_path / "snippet.py").write_text(snippet)
    scope = runpy.run_path(str(tmp_path / "snippet.py"))
    loaded = scope["model"]
    if "missing" in scope:
        head = backbones.head_name(loaded)
        assert set(scope["missing"]) == {f"{head}.weight", f"{head}.bias"}
        assert scope["extra"] == []
        loaded.set_submodule(head, torch.nn.Identity())
    x = torch.rand(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(trained.eval()(x), loaded.eval()(x))


def test_large_resnet_needs_nothing_of_ours_to_load():
    assert "fastssl" not in loading_snippet("resnet18", 224)
    assert "small_stem" in loading_snippet("resnet18", 32)


def test_projector_has_batch_norm_between_and_no_bias_anywhere():
    head = projector(6, (5, 4))
    assert [type(m).__name__ for m in head] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert head[0].bias is None and head[3].bias is None
    assert head(torch.randn(3, 6)).shape == (3, 4)
    with pytest.raises(ValueError, match="projector: dims must be"):
        projector(6, ())

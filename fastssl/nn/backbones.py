"""Encoders by name: two small nets, any torchvision classifier, any timm model; heads removed.

A name is looked up as ``convnet``, ``mlp`` or ``mlp-F`` (F features), then in torchvision, then in
timm; ``torchvision/NAME`` and ``timm/NAME`` choose the library. Weights always start at random:
nothing is ever downloaded.
"""

# shapes: N batch, C channels, S side, F features
from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
from types import ModuleType
from typing import TypeVar

import torch
from torch import nn

from fastssl.nn.convnet import ConvNet
from fastssl.nn.perceptron import Perceptron

SMALL_IMAGE = 64  # below this side a ResNet gets the small-image stem
_HEADS = ("fc", "heads", "head", "classifier")  # what torchvision calls its classification head
_MLP = re.compile(r"mlp(?:-([1-9][0-9]*))?")
_ModelT = TypeVar("_ModelT", bound=nn.Module)


def build_backbone(name: str, image_size: int, *, channels: int = 3) -> nn.Module:
    """Untrained encoder (N, channels, S, S) -> (N, F); F is its attribute ``num_features``.

    Its state dict has the library's own keys, less those of the head. Raises ValueError for an
    unknown name (with close matches and the extra that may hold it) or a size it cannot take.
    """
    library, plain = resolve(name)
    try:
        if library == "fastssl":
            model: nn.Module = _ours(plain, image_size, channels)
        elif library == "torchvision":
            model = with_channels(_torchvision(plain, image_size), channels)
        else:
            model = _timm(plain, image_size, channels)
        width = _probe(model, image_size, channels)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ValueError(
            f"backbone: {name} cannot encode {image_size} px images: {reason}; "
            "choose another --image-size or --backbone"
        ) from error
    model.num_features = width  # type: ignore[assignment]
    return model


def resolve(name: str) -> tuple[str, str]:
    """The library ("fastssl", "torchvision" or "timm") that holds ``name``, and its name there."""
    library, _, plain = name.rpartition("/")
    if library in ("", "fastssl") and (plain == "convnet" or _MLP.fullmatch(plain)):
        return "fastssl", plain
    if library in ("", "torchvision") and plain in _torchvision_names():
        return "torchvision", plain
    if library in ("", "timm") and _is_timm(plain):
        return "timm", plain
    known = ["convnet", "mlp", *_torchvision_names(), *_timm_names()]
    close = difflib.get_close_matches(plain, dict.fromkeys(known), n=4, cutoff=0.6)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    missing = [
        f'{library} models need pip install "fastssl[{extra}]"'
        for library, extra in (("torchvision", "train"), ("timm", "timm"))
        if importlib.util.find_spec(library) is None
    ]
    raise ValueError(
        "backbone: expected convnet, mlp, mlp-FEATURES or the name of a torchvision or timm "
        f"classifier, received {name!r}{hint}" + "".join(f" ({text})" for text in missing)
    )


def small_stem(resnet: _ModelT) -> _ModelT:
    """A torchvision ResNet with its stem fitted to images under 64 px, in place.

    The first convolution becomes 3x3 with stride 1 and the max-pool goes (Chen et al. 2020,
    arXiv:2002.05709, appendix B.9, for CIFAR-10). Returns the same module.
    """
    if not hasattr(resnet, "conv1") or not hasattr(resnet, "maxpool"):
        raise ValueError(
            "small_stem: expected a torchvision ResNet (with conv1 and maxpool), "
            f"received {type(resnet).__name__}"
        )
    width = resnet.conv1.out_channels
    resnet.conv1 = nn.Conv2d(3, width, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
    resnet.maxpool = nn.Identity()
    return resnet


def with_channels(model: _ModelT, channels: int) -> _ModelT:
    """A torchvision model whose first convolution takes ``channels``, in place; the same module.

    A convolution that changes starts at random as its like (Kaiming, fan out).
    """
    found = ((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    name, first = next(found, ("", None))
    if first is None:
        raise ValueError(
            f"with_channels: expected a model with a convolution, received {type(model).__name__}"
        )
    if first.in_channels == channels:
        return model
    conv = nn.Conv2d(
        channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        stride=first.stride,  # type: ignore[arg-type]
        padding=first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    model.set_submodule(name, conv)
    return model


def stem_name(name: str, image_size: int) -> str:
    """How the encoder starts, for the protocol kept with each number."""
    library, plain = resolve(name)
    if library == "torchvision" and has_small_stem(plain, image_size):
        return "3x3 stride 1, no max-pool"
    if library == "fastssl":
        return "3x3 stride 2" if plain == "convnet" else "none: all pixels"
    return "as published by the library"


def has_small_stem(torchvision_name: str, image_size: int) -> bool:
    """Whether ``build_backbone`` fits this torchvision model with the small-image stem."""
    family = ("resnet", "resnext", "wide_resnet")
    return image_size < SMALL_IMAGE and torchvision_name.startswith(family)


def head_name(model: nn.Module) -> str:
    """Name of the classification head's last Linear in a torchvision model, e.g. ``fc``."""
    for head in _HEADS:
        if not hasattr(model, head):
            continue
        linears = [key for key, module in getattr(model, head).named_modules() if _linear(module)]
        if linears:
            return f"{head}.{linears[-1]}".rstrip(".")
    raise ValueError(
        f"backbone: {type(model).__name__} does not end in a Linear head, so that its features "
        "cannot be told from its classes; choose another --backbone"
    )


def _linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def _ours(name: str, image_size: int, channels: int) -> nn.Module:
    mlp = _MLP.fullmatch(name)
    if mlp is None:
        return ConvNet(channels)
    return Perceptron(channels * image_size**2, int(mlp[1] or Perceptron.num_features))


def _torchvision(name: str, image_size: int) -> nn.Module:
    from torchvision import models

    options: dict[str, object] = {}
    if name.startswith("vit_"):
        options["image_size"] = image_size
    elif name == "maxvit_t":
        options["input_size"] = (image_size, image_size)
    elif name in ("googlenet", "inception_v3"):
        options.update(aux_logits=False, init_weights=True)
    model = models.get_model(name, weights=None, **options)
    if has_small_stem(name, image_size):
        small_stem(model)
    model.set_submodule(head_name(model), nn.Identity())
    return model


def _timm(name: str, image_size: int, channels: int) -> nn.Module:
    import timm

    # Transformers take the size, and then any other one by interpolation; conv nets know neither.
    options: dict[str, object] = {"img_size": image_size, "dynamic_img_size": True}
    while True:
        try:
            return timm.create_model(
                name, pretrained=False, num_classes=0, in_chans=channels, **options
            )
        except TypeError:
            if not options:
                raise
            options.popitem()


def _probe(model: nn.Module, image_size: int, channels: int) -> int:
    """Feature width, read off one blank image."""
    was_training = model.training
    with torch.no_grad():
        features = model.eval()(torch.zeros(1, channels, image_size, image_size))
    model.train(was_training)
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        raise RuntimeError("it does not return one feature vector per image")
    return int(features.shape[1])


def _torchvision_names() -> list[str]:
    models = _optional("torchvision.models")
    return models.list_models(module=models) if models else []


def _timm_names() -> list[str]:
    timm = _optional("timm")
    return timm.list_models() if timm else []


def _is_timm(name: str) -> bool:
    timm = _optional("timm")
    return bool(timm and timm.is_model(name))


def _optional(module: str) -> ModuleType | None:
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return None
    return importlib.import_module(module)

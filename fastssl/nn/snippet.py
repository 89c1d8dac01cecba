"""The two lines that load ``export/backbone.safetensors`` into a model nobody has to import us for.

The exported keys are the library's own, so that torchvision and timm models load them directly.
"""

from __future__ import annotations

import re

from torch import nn

from fastssl.nn.backbones import has_small_stem, resolve


def loading_snippet(
    name: str, image_size: int, path: str = "export/backbone.safetensors", *, channels: int = 3
) -> str:
    """Python source that leaves the loaded encoder in ``model``: imports, then two lines.

    name, image_size, channels: as given to ``build_backbone``. A ResNet trained under 64 px has the
    small-image stem, which ``fastssl.nn.backbones.small_stem`` puts into a torchvision ResNet.
    """
    library, plain = resolve(name)
    if library == "torchvision":
        return _torchvision_snippet(plain, image_size, path, channels)
    if library == "timm":
        taken = [*_timm_options(plain, image_size), *([("in_chans", channels)] * (channels != 3))]
        options = "".join(f", {key}={value}" for key, value in taken)
        imports = ["import timm", "from safetensors.torch import load_file"]
        build = f'model = timm.create_model("{plain}", num_classes=0{options})'
    else:
        imports = [
            "from fastssl.nn.backbones import build_backbone",
            "from safetensors.torch import load_file",
        ]
        more = f", channels={channels}" if channels != 3 else ""
        build = f'model = build_backbone("{plain}", {image_size}{more})'
    return "\n".join([*imports, build, f'model.load_state_dict(load_file("{path}"))']) + "\n"


def expanded_snippet(
    name: str, image_size: int, dim: int, path: str = "export/backbone.safetensors"
) -> str:
    """The same for an encoder that ``fastssl.nn.expand.expand`` widened to ``dim``."""
    return _ours(
        ["from fastssl.nn.expand import expand"],
        f'expand(build_backbone("{name}", {image_size}), {dim})',
        path,
    )


def conditioned_snippet(
    name: str,
    image_size: int,
    num_bits: int,
    *,
    generator: str,
    rank: int,
    prompt_networks: int,
    path: str = "export/backbone.safetensors",
) -> str:
    """The same for an encoder that is told an invariance vector of ``num_bits``."""
    inner = f'build_backbone("{name}", {image_size})'
    if resolve(name)[1].startswith("vit_"):
        line = "from fastssl.nn.prompt_vit import PromptViT"
        build = f"PromptViT({inner}, {num_bits}, num_networks={prompt_networks})"
    else:
        line = "from fastssl.nn.hyper import HyperEncoder"
        build = f'HyperEncoder({inner}, {num_bits}, generator="{generator}", rank={rank})'
    call = f"# features: model(x, torch.ones({num_bits})); 1 = invariant to that group, 0 = not"
    return _ours([line], build, path) + call + "\n"


def coded_snippet(
    name: str,
    image_size: int,
    latent: nn.Module,
    path: str = "export/backbone.safetensors",
) -> str:
    """The same for an encoder that ends in a ``latent``'s code."""
    kind, width = type(latent).__name__, latent.parameters_of.in_features  # type: ignore[union-attr]
    values = f", values={latent.values}" if kind == "CategoricalLatent" else ""
    return _ours(
        [f"from fastssl.nn.latent import Coded, {kind}"],
        f'Coded(build_backbone("{name}", {image_size}), {kind}({width}, {latent.dim}{values}))',
        path,
    )


def _ours(imports: list[str], build: str, path: str) -> str:
    lines = [
        "from fastssl.nn.backbones import build_backbone",
        *imports,
        "from safetensors.torch import load_file",
        f"model = {build}",
        f'model.load_state_dict(load_file("{path}"))',
    ]
    return "\n".join(lines) + "\n"


def _torchvision_snippet(name: str, image_size: int, path: str, channels: int) -> str:
    size = f"image_size={image_size}" if name.startswith("vit_") else ""
    size = f"input_size=({image_size}, {image_size})" if name == "maxvit_t" else size
    size = "aux_logits=False, init_weights=True" if name in ("googlenet", "inception_v3") else size
    imports = ["from safetensors.torch import load_file", f"from torchvision.models import {name}"]
    build = f"{name}({size})"
    if has_small_stem(name, image_size):
        imports.append("from fastssl.nn.backbones import small_stem  # 3x3 stride 1, no max-pool")
        build = f"small_stem({build})"
    if channels != 3:
        imports.append("from fastssl.nn.backbones import with_channels")
        build = f"with_channels({build}, {channels})"
    load = (
        f'missing, extra = model.load_state_dict(load_file("{path}"), strict=False)'
        "  # missing: the head alone; extra: nothing"
    )
    return "\n".join([*imports, f"model = {build}", load]) + "\n"


def _timm_options(name: str, image_size: int) -> list[tuple[str, object]]:
    """The arguments this model takes, found as ``build_backbone`` finds them."""
    import timm

    options: list[tuple[str, object]] = [("img_size", image_size), ("dynamic_img_size", True)]
    while options:
        try:
            timm.create_model(name, pretrained=False, num_classes=0, **dict(options))
            return options
        except TypeError as error:
            if not re.search("unexpected keyword", str(error)):
                raise
            options.pop()
    return options

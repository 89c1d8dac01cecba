"""The training state: what goes into a checkpoint and how it comes back.

Everything is checked against the live method and optimiser before the first value is changed.
"""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor, nn

from fastssl.engine.checkpoint import CheckpointError, Snapshot
from fastssl.engine.optim import named_state
from fastssl.engine.seeding import rng_state, set_rng_state

_WRAPPERS = ("_orig_mod.", "module.")


def fingerprint(identity: dict) -> str:
    """SHA-256 of the settings that may not change within a run."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def capture(
    method: nn.Module, optimizer: torch.optim.Optimizer, *, device: torch.device, state: dict
) -> Snapshot:
    """The method's tensors, the optimiser's tensors by parameter name, and ``state`` plus RNG.

    Raises:
        ValueError: the method keeps something that is neither a tensor nor JSON.
    """
    tensors, extra = _split(method)
    return Snapshot(
        model=_portable(tensors),
        optim=_portable(named_state(optimizer, method)),
        state={**state, "extra": extra, "rng": rng_state(device)},
    )


def restore(
    snapshot: Snapshot, method: nn.Module, optimizer: torch.optim.Optimizer, *, device: torch.device
) -> None:
    """Put ``snapshot`` into method, optimiser and torch's generators.

    Raises:
        CheckpointError: names, shapes or dtypes differ from the live ones; nothing was changed.
    """
    tensors, extra = _split(method)
    optim = named_state(optimizer, method)
    _refuse_difference("model", snapshot.model, tensors)
    _refuse_difference("optimizer", snapshot.optim, optim)
    saved_extra = snapshot.state.get("extra")
    if not isinstance(saved_extra, dict) or saved_extra.keys() != extra.keys():
        raise CheckpointError("state.json: extra state is of another method")
    before = torch.get_rng_state()
    try:
        set_rng_state(snapshot.state["rng"], device)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        torch.set_rng_state(before)
        raise CheckpointError(f"state.json: no random state: {str(error)[:100]}") from error
    with torch.no_grad():
        for live, saved in ((tensors, snapshot.model), (optim, snapshot.optim)):
            for name, tensor in live.items():
                tensor.copy_(saved[name])
    set_extra(method, saved_extra)


def set_extra(method: nn.Module, extra: dict) -> None:
    """Give every module back what its ``get_extra_state`` returned."""
    modules = dict(method.named_modules())
    for key, value in extra.items():
        modules[key.removesuffix("_extra_state").rstrip(".")].set_extra_state(value)


def _split(method: nn.Module) -> tuple[dict[str, Tensor], dict]:
    tensors, extra = {}, {}
    for key, value in method.state_dict().items():
        assert not key.startswith(_WRAPPERS), f"wrapped key {key}: compile in place instead"
        if isinstance(value, Tensor):
            tensors[key] = value
            continue
        try:
            extra[key] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"method: state {key!r} is a {type(value).__name__}; checkpoints hold tensors and "
                "JSON only: make it a buffer, or return plain values from get_extra_state"
            ) from error
    return tensors, extra


def _portable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous on the CPU; tensors that share memory are copied apart."""
    seen: set[int] = set()
    portable = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        portable[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return portable


def _refuse_difference(what: str, saved: dict[str, Tensor], live: dict[str, Tensor]) -> None:
    missing, unknown = live.keys() - saved.keys(), saved.keys() - live.keys()
    if missing or unknown:
        raise CheckpointError(
            f"{what}: {len(missing)} tensors missing {sorted(missing)[:3]}, "
            f"{len(unknown)} unknown {sorted(unknown)[:3]}"
        )
    for name, tensor in live.items():
        received = saved[name]
        if received.shape != tensor.shape or received.dtype != tensor.dtype:
            raise CheckpointError(
                f"{what}: {name}: expected {tuple(tensor.shape)} {tensor.dtype}, "
                f"received {tuple(received.shape)} {received.dtype}"
            )

"""Are the data of a resumed run those that it began with? config.yaml keeps their fingerprint."""

from __future__ import annotations

RESOLVED = "resolved"  # section of config.yaml: what a start made of the settings
_GIVEN = "given_as"  # what --data said when the run began; no part of the fingerprint


def kept_of_data(settings: dict) -> dict | None:
    """Fingerprint of the data and what they were given as; None in runs that kept none."""
    resolved = settings.get(RESOLVED)
    kept = resolved.get("data") if isinstance(resolved, dict) else None
    return kept if isinstance(kept, dict) else None


def refuse_other_data(before: dict | None, now: dict | None) -> None:
    """ValueError where the data are not those that the run began with.

    before: their fingerprint then, None where none was kept: such a run goes on unchecked.
    """
    if before is None or {k: v for k, v in before.items() if k != _GIVEN} == now:
        return
    had, has = before.get("samples"), (now or {}).get("samples")
    told = f"the data had {had} samples, now {'another kind' if now is None else has}"
    if had == has:
        told = f"the data have {had} samples as before, but other names, sizes or labels"
    raise ValueError(
        f"resume: {told}: order, labels and test split would not be those of the run. Give --data "
        "the data as they were, or start anew with another --out. Nothing was touched"
    )

"""Report of a call: the backend of each component with the reason, the sampler, and the time of each stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors.printable import printable


@dataclass(frozen=True, kw_only=True)
class ComponentReport:
    """Backend of one component. `error` is its largest relative difference from eager float32, if it was checked."""

    name: str
    backend: str
    precision: str
    why: str
    error: float | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Report of a call. `str(report)` is a table, `to_json()` returns plain data."""

    model: str
    model_id: str
    components: tuple[ComponentReport, ...]
    sampler: str
    steps: int
    network_calls: int
    seconds: dict[str, float]
    loras: tuple[tuple[str, float], ...] = ()  # (file, weight), in the order in which they were added
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "model": self.model,
            "model_id": self.model_id,
            "components": [vars(c) for c in self.components],
            "sampler": self.sampler,
            "steps": self.steps,
            "network_calls": self.network_calls,
            "seconds": self.seconds,
            "loras": [{"file": file, "weight": weight} for file, weight in self.loras],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [f"model    {self.model} ({self.model_id})"]
        lines.append(f"sampler  {self.sampler}, {self.steps} steps, {self.network_calls} U-Net calls")
        width = max((len(c.name) for c in self.components), default=0)
        for c in self.components:
            checked = "" if c.error is None else f", within {c.error:.0e} of eager"
            lines.append(f"{c.name:<{width}}  {c.backend} {c.precision}{checked} ({c.why})")
        lines.extend(f"lora     {file} x {weight:g}" for file, weight in self.loras)
        total = sum(self.seconds.values())
        stages = ", ".join(f"{stage} {spent:.2f} s" for stage, spent in self.seconds.items())
        lines.append(f"time     {total:.2f} s: {stages}")
        lines.extend(f"note     {note}" for note in self.notes)
        return "\n".join(map(printable, lines))

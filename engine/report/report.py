"""Report of a call: the backend of each component with the reason, the sampler, and the time of each stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors.printable import printable


@dataclass(frozen=True, kw_only=True)
class ComponentReport:
    """Backend of one component.

    Attributes:
        name: For example "unet".
        backend: For example "openvino".
        precision: In which it computes, for example "bf16".
        why: The reason for this backend.
        precision_reason: Why it computes in this precision; empty where nothing was to choose.
        error: The largest difference from PyTorch in float32, relative to its largest number; None if it was not
            checked.
    """

    name: str
    backend: str
    precision: str
    why: str
    precision_reason: str = ""
    error: float | None = None

    @property
    def difference(self) -> str:
        """The error in words; empty if it was not checked."""
        return "" if self.error is None else f"max relative error {self.error:.0e} against PyTorch float32"


@dataclass(frozen=True, kw_only=True)
class PassReport:
    """One of the two passes of a call with `hires`: its size in pixels, and how often the U-Net ran."""

    width: int
    height: int
    network_calls: int


@dataclass(frozen=True, kw_only=True, repr=False)
class Report:
    """Report of a call. `str(report)` is a table, `to_json()` returns plain data.

    Attributes:
        model: The model's name.
        model_id: The first twelve digits of the SHA-256 of its configs and weights.
        components: The backend of each component, with the reason: a `ComponentReport` for each open network.
        sampler: The scheduler's name.
        steps: The number of steps.
        network_calls: How often the U-Net ran for the batch. Schedulers of second order call it more than once a step.
        seconds: The time of each stage in seconds: "text", "steps", "decode" and others. Those of the second pass of
            `hires` start with "hires".
        loras: The file and weight of each LoRA, in the order in which they were added.
        passes: Size and network calls of both passes of a call with `hires`; else empty.
        notes: What is not obvious: resized input images, cut prompts, retries in a higher precision.
    """

    model: str
    model_id: str
    components: tuple[ComponentReport, ...]
    sampler: str
    steps: int
    network_calls: int
    seconds: dict[str, float]
    loras: tuple[tuple[str, float], ...] = ()
    passes: tuple[PassReport, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Convert the report to data for `json.dump`.

        Returns:
            A dict with the attributes, components and LoRAs as dicts.
        """
        return {
            "model": self.model,
            "model_id": self.model_id,
            "components": [vars(c) for c in self.components],
            "sampler": self.sampler,
            "steps": self.steps,
            "network_calls": self.network_calls,
            "seconds": self.seconds,
            "loras": [{"file": file, "weight": weight} for file, weight in self.loras],
            "passes": [vars(each) for each in self.passes],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [f"model    {self.model} ({self.model_id})"]
        lines.append(f"sampler  {self.sampler}, {self.steps} steps, {self.network_calls} U-Net calls")
        sizes = (f"{each.width}x{each.height} in {each.network_calls}" for each in self.passes)
        lines += [f"passes   {', then '.join(sizes)} U-Net calls"] if self.passes else []
        width = max((len(c.name) for c in self.components), default=0)
        for c in self.components:
            checked = f", {c.difference}" if c.difference else ""
            reasons = "; ".join(filter(None, (c.why, c.precision_reason)))
            lines.append(f"{c.name:<{width}}  {c.backend} {c.precision}{checked} ({reasons})")
        lines.extend(f"lora     {file} x {weight:g}" for file, weight in self.loras)
        total = sum(self.seconds.values())
        stages = ", ".join(f"{stage} {spent:.2f} s" for stage, spent in self.seconds.items())
        lines.append(f"time     {total:.2f} s: {stages}")
        lines.extend(f"note     {note}" for note in self.notes)
        return "\n".join(map(printable, lines))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from .notebook import report_as_html

        return report_as_html(self)

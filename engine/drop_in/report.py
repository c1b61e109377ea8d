"""What runs compiled in an accelerated pipeline, and what stays in eager PyTorch, with the reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class ModuleReport:
    """One network of a pipeline.

    Attributes:
        name: its name in the pipeline: unet, vae.decoder, controlnet.0, ...
        class_name: its class.
        backend: the backend that runs it, or would run its first call; or "eager".
        precision: the precision of its artifacts, or None before the first one is opened.
        precision_reason: why it is that precision; "" if it was requested.
        compiled_calls: the number of calls that an artifact ran.
        eager_calls: the number of calls that PyTorch ran.
        reasons: why PyTorch ran calls -> how many.
        checks: the call -> the difference from eager: ||compiled - eager|| / ||eager||.
        updates: how often the weights of an artifact were changed.
        notes: what the backend reports.
    """

    name: str
    class_name: str
    backend: str
    precision: str | None = None
    precision_reason: str = ""
    compiled_calls: int = 0
    eager_calls: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    checks: Mapping[str, float] = field(default_factory=dict)
    updates: int = 0
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = self.backend + (f" {self.precision}" if self.precision else "")
        called = f"{self.compiled_calls} calls compiled, {self.eager_calls} eager"
        called = called if self.compiled_calls + self.eager_calls else "not called yet"
        lines = [f"{self.name} ({self.class_name}): {where}, {called}"]
        lines += [f"  {self.precision_reason}"] if self.precision_reason else []
        lines += [f"  eager {count}x: {reason}" for reason, count in self.reasons.items()]
        if self.checks:
            lines.append(f"  differs from eager by at most {max(self.checks.values()):.1e} ({len(self.checks)} checks)")
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class AccelerateReport:
    """The report of an accelerated pipeline or module.

    Attributes:
        modules: one for each network, those that always run in PyTorch too.
        image_psnr_db: the PSNR of the first image against eager's; None if it was not compared; inf if equal.
        image_note: what became of that comparison.
    """

    modules: tuple[ModuleReport, ...]
    image_psnr_db: float | None = None
    image_note: str = ""

    def __getitem__(self, name: str) -> ModuleReport:
        """Return the report of one network by its name. Raises `KeyError`."""
        for module in self.modules:
            if module.name == name:
                return module
        raise KeyError(name)

    def __str__(self) -> str:
        lines = [str(module) for module in self.modules] or ["no networks"]
        return "\n".join([*lines, *([f"image: {self.image_note}"] if self.image_note else [])])

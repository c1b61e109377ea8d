"""`calotype inspect`: the content of a plan as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors.printable import printable
from ..system.memory import in_words
from .command import rebuild_command
from .plan import Plan, PlannedComponent

_UNITS = {
    **{"psnr": "{:.1f} dB", "ssim": "ssim {:.3f}", "lpips": "lpips {:.3f}"},
    **{"judge": "judge {:.0%}", "clip": "clip {:.3f}"},
}


def describe(plan: Plan) -> dict[str, Any]:
    """Return the content of a plan as plain data. Sizes are in bytes."""
    return {
        "family": plan.family,
        "fingerprint": plan.fingerprint,
        "profile": plan.profile.to_json(),
        "components": {c.name: _component(c) for c in plan.components.values()},
        "scheduler": plan.scheduler.get("_class_name"),
        "samplers": [] if plan.samplers is None else sorted(p.stem for p in plan.samplers.glob("*.npz")),
        "build": dict(plan.build),
    }


def _component(component: PlannedComponent) -> dict[str, Any]:
    return {
        "inputs": [str(b) for b in component.inputs],
        "outputs": [str(b) for b in component.outputs],
        "artifacts": [
            {
                "form": a.form,
                "precision": a.precision,
                "file": str(a.path),
                "bytes": _bytes(a.path),
                "check": dict(a.check),
            }
            for a in component.artifacts
        ],
    }


def _bytes(path: Path) -> int:
    """Return the size of an artifact: the graph and its external data."""
    files = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.name}*")
    return sum(p.stat().st_size for p in files if p.is_file())


def format_plan(plan: Plan) -> str:
    """Return the content of a plan as text for a terminal."""
    build, profile = plan.build, plan.profile
    lines = [f"plan         {plan.model}", f"family       {plan.family}, fingerprint {plan.model_id}"]
    lines.append(f"profile      {profile}")
    if build:
        target = f"for {build['backend']}, precision {build['precision']}, in {build['seconds']} s"
        lines.append(f"built        {build['made']} {target}")
        lines.append(f"source       {build['spec']['model']}")
        lines.append(f"command      {rebuild_command(build, plan.model)}")
        lines.append(f"versions     {', '.join(f'{n} {v}' for n, v in build['tools'].items())}")
        proof = build["proof"]
        lines.append(
            f"evaluation   {_figures(proof)} against float32 eager, {proof['pictures']} images of "
            f"{proof['width']}x{proof['height']}, {proof['steps']} steps; bounds {', '.join(build['max_loss'])}"
        )
    lines += ["", *_table(_component_rows(plan))]
    for c in plan.components.values():
        lines += ["", c.name, *(f"  in   {b}" for b in c.inputs), *_outputs(c)]
    if build.get("table"):
        lines += ["", "trials", *_table(_trial_rows(build["table"]))]
    return "\n".join(map(printable, lines))


def _outputs(component: PlannedComponent) -> list[str]:
    shown = [b for b in component.outputs if not b.name.startswith(("hidden_states.", "skipped_states."))]
    more = len(component.outputs) - len(shown)
    return [*(f"  out  {b}" for b in shown), *([f"  out  {more} more hidden states"] if more else [])]


def _component_rows(plan: Plan) -> Iterable[Sequence[str]]:
    yield ("component", "precision", "size", "traced", "real inputs", "file")
    for c in plan.components.values():
        for a in c.artifacts:
            real = a.check.get("real_inputs", {})
            traced = a.check.get("traced_error")
            yield (
                c.name,
                a.precision if "weights" not in a.check else f"{a.precision}, {a.check['weights']} weights",
                in_words(_bytes(a.path)),
                "" if traced is None else f"{traced:.0e}",
                "" if not real else f"{real['relative_l2']:.0e}",
                str(a.path.relative_to(plan.model)) if a.path.is_relative_to(plan.model) else str(a.path),
            )


def _trial_rows(table: Sequence[Mapping[str, Any]]) -> Iterable[Sequence[str]]:
    yield ("component", "precision", "kept in fp32", "speed", "loss", "", "")
    for row in table:
        verdict = "chosen" if row["chosen"] else "passed" if row["passed"] else ""
        kept = f"{row['kept']} of {row['groups']}" if row["groups"] else ""
        speed = "" if row["speed"] is None else f"{row['speed']:.2f}x"
        yield (row["component"], row["precision"], kept, speed, _figures(row["loss"]), verdict, row["why"])


def _figures(loss: Mapping[str, Any]) -> str:
    return ", ".join(shape.format(loss[name]) for name, shape in _UNITS.items() if name in loss)


def _table(rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [list(row) for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]

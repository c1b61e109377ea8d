"""`calotype bench` and `python -m calotype.benchmarks`. Heavy imports wait until a command runs."""

from __future__ import annotations

import datetime
import importlib.util
import json
import shlex
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calotype.errors import BackendError, InputError
from calotype.export.commands import cli

if TYPE_CHECKING:
    from .measure.record import Recorded
    from .run.case_run import Settings
    from .suite.cases import Case

main = cli.main

bench = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Compare backends and peers on the same pictures: speed, and whether the picture is right.",
)
cli.app.add_typer(bench, name="bench")


@bench.callback(invoke_without_command=True)
def run_cases(
    context: typer.Context,
    preset: Annotated[str, typer.Option(help="quick (two minutes), cpu, ablation, approximate, gpu, full.")] = "quick",
    case: Annotated[
        list[str] | None,
        typer.Option(help='Instead of a preset: "model=sd15 size=512 steps=4 backend=openvino precision=bf16".'),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="Who runs: a backend of ours, a peer, or MAKER[:BACKEND]:PRECISION; may be repeated."),
    ] = None,
    wanted: Annotated[str, typer.Option("--filter", help="Only rows (CASE CONTENDER) that contain this.")] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The run's folder.  [default: bench-DATE-PRESET]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="For everybody alike.  [default: all we may use]")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that a worker may take for one answer.")] = 1800.0,
    clip_model: Annotated[Path | None, typer.Option(help="A CLIP model's folder, for the CLIP score.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Say which rows would run, and leave.")] = False,
) -> None:
    """Run a preset, or cases of your own; a table, run.jsonl, report.html, and a last line of JSON."""
    if context.invoked_subcommand is not None:
        return
    cases = _cases(preset, case or [], tuple(backend or ()), wanted)
    if listed:
        for one in cases:
            for contender in one.contenders:
                typer.echo(f"{one.id}  {contender.name}")
        return
    cores = _cores(threads)
    name = "case" if case else preset
    folder = output or Path(f"bench-{datetime.datetime.now(datetime.UTC):%Y-%m-%d-%H%M%S}-{name}")
    _check(folder, clip_model)
    from .run.case_run import Settings

    said = {"--case": case or [], "--preset": [] if case else [preset], "--backend": backend or []}
    said |= {"--filter": [wanted] if wanted else [], "--threads": [] if threads is None else [str(threads)]}
    said |= {"--clip-model": [] if clip_model is None else [str(clip_model)]}
    command = shlex.join(
        ["calotype", "bench", *(word for flag, values in said.items() for v in values for word in (flag, v))]
    )
    settings = Settings(
        preset=name,
        command=command,
        output=folder,
        threads=cores,
        timeout_s=timeout,
        clip_model=clip_model,
        tell=_tell,
    )
    _report(_run(cases, settings), folder)


def _cores(threads: int | None) -> int:
    from calotype.system import threads as cores

    allowed = cores.available()
    if threads is not None and not 1 <= threads <= allowed:
        raise InputError(f"--threads takes 1 to {allowed}, as many cores as this process may use; got {threads}.")
    return threads or allowed


def _run(cases: tuple[Case, ...], settings: Settings) -> Recorded:
    """What is done is on disk after each case, also where the run is stopped."""
    from .measure import record
    from .run.suite_run import run

    try:
        return run(cases, settings, written=lambda recorded: record.write(recorded, settings.output))
    except KeyboardInterrupt:
        done = settings.output / record.ROWS_FILE
        told = f"{done} has the cases that were done" if done.exists() else "no case was done yet"
        typer.echo(f"calotype: stopped; workers were ended, and {told}.", err=True)
        raise typer.Exit(130) from None


def _cases(preset: str, own: list[str], backends: tuple[str, ...], wanted: str) -> tuple[Case, ...]:
    from .suite.cases import case_from, chosen
    from .suite.presets import PRESETS, usual

    if not own and preset not in PRESETS:
        raise InputError(f"unknown preset {preset!r}; known are {', '.join(PRESETS)}.")
    written = [case_from(words) for words in own]
    cases = [replace(case, contenders=case.contenders or usual(case)) for case in written] or PRESETS[preset]
    return chosen(tuple(cases), backends, wanted)


def _check(folder: Path, clip_model: Path | None) -> None:
    """What a run needs is found out before the work, not after it."""
    lacking = [
        name for name in ("torch", "diffusers", "transformers", "scipy") if importlib.util.find_spec(name) is None
    ]
    if lacking:
        raise InputError(f"the suite needs {', '.join(lacking)}: pip install 'calotype[build,cpu,bench]'.")
    if clip_model is not None and not (clip_model / "config.json").is_file():
        raise InputError(f"{clip_model} is no CLIP model's folder: it has no config.json.")
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is there already and not empty; name another folder with -o.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as failed:
        raise InputError(f"{folder} cannot be written: {failed.strerror}.") from None


def _tell(line: str) -> None:
    typer.echo(f"calotype: {line}", err=True)


def _report(recorded: Recorded, folder: Path) -> None:
    from rich.console import Console

    from .measure.record import ROWS_FILE
    from .report import table

    path = folder / ROWS_FILE
    table.show(recorded, Console())
    told: dict[str, Any] = {"benchmark": "calotype", "record": str(path), "page": None}
    try:
        from .report.page import write_page

        write_page(recorded, folder / "report.html")
        told["page"] = str(folder / "report.html")
    except (InputError, BackendError) as lacking:
        _tell(str(lacking))
    print(json.dumps({**told, "rows": [_line(row) for row in recorded.rows]}), flush=True)
    if not any(row.speed for row in recorded.rows):
        sys.exit(1)


def _line(row: Any) -> dict[str, Any]:
    speed, ratio, quality = row.speed, row.ratio, row.quality
    return {
        "case": row.case_id,
        "contender": row.contender,
        "status": row.status,
        **({"reason": row.reason} if row.reason else {}),
        **({"median_s": speed.median_s, "runs": len(speed.samples_s)} if speed else {}),
        **({"ratio": ratio.median, "low": ratio.low, "high": ratio.high, "verdict": ratio.verdict} if ratio else {}),
        **({"psnr_db": quality.psnr_db} if quality else {}),
    }


@bench.command()
def peers(
    names: Annotated[list[str] | None, typer.Argument(help="Which; without names they are listed.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Make all that can run here.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the environments named.")] = False,
) -> None:
    """Make the peers' environments, each its own, from its pinned requirements; or say which are there."""
    from .measure import system_load as watch
    from .run import environments
    from .suite.contenders import PEERS

    runs_here = [n for n in environments.PEERS if watch.has_gpu() or n not in ("onnxruntime_cuda", "tensorrt")]
    # A peer's name, or that of its environment, which several may share.
    chosen = [PEERS[n].folder if n in PEERS else n for n in names or (runs_here if everything else [])]
    failed = 0
    for name in chosen:
        if remove:
            environments.remove(name)
            continue
        _tell(f"making the environment of {name}")
        try:
            environments.make(name, show=lambda line: None)
        except BackendError as told:
            failed += 1
            _tell(str(told))
    for name in environments.PEERS:
        there = environments.python_of(name) is not None
        typer.echo(f"{name:<24} {'ready' if there else environments.why_not(name) or 'not made'}")
    if failed:
        sys.exit(1)


@bench.command()
def compare(
    old: Annotated[Path, typer.Argument(help="A run's folder or its run.jsonl.")],
    new: Annotated[Path, typer.Argument(help="The run to hold against it.")],
    threshold: Annotated[float, typer.Option(help="A row this much slower is a regression: 0.05 is 5 %.")] = 0.05,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """What moved between two runs beyond noise; exit code 1 where something got worse past the threshold."""
    from rich.console import Console

    from .measure.record import read
    from .report import compare_table as moves
    from .report.compare import compare as compared

    found = compared(read(old), read(new), threshold=threshold)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        moves.show(found, Console())
    if found.regressed:
        sys.exit(1)


@bench.command()
def targets(folder: Annotated[Path, typer.Argument(help="A run's folder or its run.jsonl.")]) -> None:
    """Say which of the targets for one H200 a run of the preset gpu met."""
    from .measure.record import read
    from .report.targets import told

    for line in told(read(folder).rows):
        typer.echo(line)


@bench.command()
def page(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="[default: report.html in it]")] = None,
) -> None:
    """Write the run's HTML page anew."""
    from .measure.record import read
    from .report.page import write_page

    path = output or folder / "report.html"
    write_page(read(folder), path)
    typer.echo(str(path))


@bench.command()
def results(
    runs: Annotated[list[Path] | None, typer.Argument(help="Runs' folders to keep; none: only the table.")] = None,
    into: Annotated[Path, typer.Option(help="The repository's folder of results.")] = Path("benchmarks/results"),
) -> None:
    """Keep runs among the committed results, and write RESULTS.md anew from all of them."""
    from .measure.record import read
    from .report import results as kept

    for run in runs or []:
        typer.echo(str(kept.keep(read(run), into)))
    typer.echo(str(kept.write(into)))

"""`calotype bench` and `python -m calotype.benchmarks`. Heavy imports wait until a command runs."""

from __future__ import annotations

import datetime
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
from calotype.serve.command import add_serve

if TYPE_CHECKING:
    from .measure.record import ResultRow, RunRecord
    from .suite.cases import Case

main = cli.main
add_serve(cli.app)

bench = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Compare backends and peers on the same images: speed, and whether the images are correct.",
)
cli.app.add_typer(bench, name="bench")
EXAMPLE = '"model=sd15 size=512 steps=4 backend=openvino precision=bf16"'
CONTENDERS = "A backend, a peer, or MAKER[:BACKEND]:PRECISION"
RunFolder = Annotated[Path, typer.Argument(help="A run's folder or its run.jsonl.")]


@bench.callback(invoke_without_command=True)
def run_cases(
    context: typer.Context,
    preset: Annotated[
        str, typer.Option(help="quick (two minutes), cpu, ablation, approximate, gpu, full, serve or scale.")
    ] = "quick",
    case: Annotated[list[str] | None, typer.Option(help=f"A case in place of a preset, such as {EXAMPLE}.")] = None,
    backend: Annotated[list[str] | None, typer.Option(help=f"{CONTENDERS}; may be repeated.")] = None,
    row_filter: Annotated[str, typer.Option("--filter", help="Run only rows (CASE CONTENDER) with this text.")] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The run's folder.  [default: bench-DATE-PRESET]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of a contender.  [default: all available cores]")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that a worker may take for one request.")] = 1800.0,
    clip_model: Annotated[Path | None, typer.Option(help="The folder of a CLIP model, for the CLIP score.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the rows that would run, and exit.")] = False,
) -> None:
    """Run a preset, or your own cases. Print a table and a last line of JSON; write run.jsonl and report.html."""
    if context.invoked_subcommand is not None:
        return
    if preset == "serve" and not case:
        _compare_servers(output, backend)
        return
    if preset == "scale" and not case:
        _measure_scale(output, backend, row_filter)
        return
    cases = _cases(preset, case or [], tuple(backend or ()), row_filter)
    if listed:
        for one in cases:
            for contender in one.contenders:
                typer.echo(f"{one.id}  {contender.name}")
        return
    from calotype.system.threads import available

    if threads is not None and not 1 <= threads <= available():
        message = f"--threads takes 1 to {available()}, the cores that this process may use; got {threads}."
        raise InputError(message, argument="threads", got=threads)
    name = "case" if case else preset
    folder = output or Path(f"bench-{datetime.datetime.now(datetime.UTC):%Y-%m-%d-%H%M%S}-{name}")
    _check(folder, clip_model)
    from .run.workload import RunSettings

    words = [word for text in case or [] for word in ("--case", text)] or ["--preset", preset]
    words += [word for text in backend or [] for word in ("--backend", text)]
    others = {"--filter": row_filter or None, "--threads": threads, "--clip-model": clip_model}
    words += [str(word) for pair in others.items() if pair[1] is not None for word in pair]
    settings = RunSettings(
        preset=name,
        command=shlex.join(["calotype", "bench", *words]),
        output=folder,
        threads=threads or available(),
        timeout_s=timeout,
        clip_model=clip_model,
        show=_log,
    )
    from .measure import record
    from .run.suite_run import run

    try:  # after each case, all finished cases are on disk, so a run that is stopped keeps them
        _report(run(cases, settings, written=lambda recorded: record.write(recorded, folder)), folder)
    except KeyboardInterrupt:
        done = folder / record.ROWS_FILE
        saved = f"{done} contains the finished cases" if done.exists() else "no case was finished"
        _log(f"stopped the run and its workers; {saved}.")
        raise typer.Exit(130) from None


def _compare_servers(output: Path | None, backend: list[str] | None) -> None:
    folder = output or Path(f"bench-{datetime.datetime.now(datetime.UTC):%Y-%m-%d-%H%M%S}-serve")
    _check(folder, None)
    from .serving.servers import measure

    measure(folder, backend=(backend or ["auto"])[0])


def _measure_scale(output: Path | None, backend: list[str] | None, row_filter: str) -> None:
    folder = output or Path(f"bench-{datetime.datetime.now(datetime.UTC):%Y-%m-%d-%H%M%S}-scale")
    _check(folder, None)
    from .scale.measure import measure, table

    measured = measure(folder, backend=(backend or ["openvino"])[0], row_filter=row_filter, show=_log)
    typer.echo(table(measured["rows"]))


def _cases(preset: str, own: list[str], backends: tuple[str, ...], row_filter: str) -> tuple[Case, ...]:
    from .suite.cases import case_from, chosen
    from .suite.presets import PRESETS, usual

    if not own and preset not in PRESETS:
        raise InputError(
            f"unknown preset {preset!r}. Use {', '.join(PRESETS)}, serve or scale.", argument="preset", got=preset
        )
    written = [case_from(words) for words in own]
    cases = [replace(case, contenders=case.contenders or usual(case)) for case in written] or PRESETS[preset]
    return chosen(tuple(cases), backends, row_filter)


def _check(folder: Path, clip_model: Path | None) -> None:
    from calotype.backends.base import missing_packages

    if reason := missing_packages("build,cpu,bench", "torch", "diffusers", "transformers", "scipy"):
        raise InputError(f"cannot run the benchmark suite: {reason}.")
    if clip_model is not None and not (clip_model / "config.json").is_file():
        message = f"cannot read the CLIP model {clip_model}: it has no config.json."
        raise InputError(message, argument="clip_model", got=str(clip_model))
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty. Choose another folder with -o.", argument="output", got=str(folder))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}.", argument="output", got=str(folder)) from None


def _log(line: str) -> None:
    typer.echo(f"calotype: {line}", err=True)


def _report(recorded: RunRecord, folder: Path) -> None:
    from rich.console import Console

    from .measure.record import ROWS_FILE
    from .report.page import write_page
    from .report.table import show

    show(recorded, Console())
    summary: dict[str, Any] = {"benchmark": "calotype", "record": str(folder / ROWS_FILE), "page": None}
    try:
        summary["page"] = str(write_page(recorded, folder / "report.html"))
    except (InputError, BackendError) as error:
        _log(str(error))
    print(json.dumps({**summary, "rows": [_line(row) for row in recorded.rows]}), flush=True)
    if not any(row.speed for row in recorded.rows):
        sys.exit(1)


def _line(row: ResultRow) -> dict[str, Any]:
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
    names: Annotated[list[str] | None, typer.Argument(help="Names of peers; without names, list all.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Make every environment that can run here.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the named environments.")] = False,
) -> None:
    """List the environments of the peers, or make or remove some. Each has its own pinned requirements."""
    from calotype.system.nvidia import has_gpu

    from .run import environments
    from .suite.contenders import PEERS

    runs_here = [n for n in environments.PEERS if has_gpu() or n not in ("onnxruntime_cuda", "tensorrt")]
    # A name is that of a peer, or that of an environment, which several peers may share.
    chosen = [PEERS[n].folder if n in PEERS else n for n in names or (runs_here if everything else [])]
    failed = False
    for name in chosen:
        if remove:
            environments.remove(name)
            continue
        _log(f"making the environment of {name}")
        try:
            environments.make(name)
        except BackendError as error:
            failed = True
            _log(str(error))
    for name in environments.PEERS:
        ready = environments.python_of(name) is not None
        typer.echo(f"{name:<24} {'ready' if ready else environments.failure_reason(name) or 'not installed'}")
    if failed:
        sys.exit(1)


@bench.command()
def compare(
    old: RunFolder,
    new: Annotated[Path, typer.Argument(help="The run to compare with it.")],
    threshold: Annotated[float, typer.Option(help="A row this much slower is a regression: 0.05 is 5 %.")] = 0.05,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare two runs and show what changed beyond noise. Exit code 1 for a regression past the threshold."""
    from rich.console import Console

    from .measure.record import read
    from .report.compare import compare as compare_runs
    from .report.table import show_comparison

    comparison = compare_runs(read(old), read(new), threshold=threshold)
    if as_json:
        typer.echo(json.dumps(comparison.to_json()))
    else:
        show_comparison(comparison, Console())
    if comparison.regressed:
        sys.exit(1)


@bench.command()
def targets(folder: RunFolder) -> None:
    """Show which of the targets for one H200 a run of the preset gpu met."""
    from .measure.record import read
    from .report.targets import describe_targets

    for line in describe_targets(read(folder).rows):
        typer.echo(line)


@bench.command()
def page(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="[default: report.html in the folder]")] = None,
) -> None:
    """Write the HTML page of a run."""
    from .measure.record import read
    from .report.page import write_page

    typer.echo(str(write_page(read(folder), output or folder / "report.html")))


@bench.command()
def results(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Folders of runs to keep; without them, only generate RESULTS.md.")
    ] = None,
    into: Annotated[Path, typer.Option(help="The folder of results in the repository.")] = Path("benchmarks/results"),
) -> None:
    """Keep runs among the committed results, and generate RESULTS.md from all of them."""
    from .measure.record import read
    from .report import results as committed

    for run in runs or []:
        typer.echo(str(committed.keep(read(run), into)))
    typer.echo(str(committed.write(into)))

"""The command line: one command per verb. Parses, calls, prints; computes nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from dnic import __version__
from dnic.arguments import (
    BundleArg,
    DevicesOption,
    JsonOption,
    MetaOption,
    ModelArg,
    PrintAfter,
    ProbeOption,
    ScheduleOption,
    SpecOption,
    err,
    out,
)
from dnic.errors import DnicError
from dnic.probing import probe_command

app = typer.Typer(
    name="dnic",
    help="Compile a PyTorch model into a training program of decoupled stages.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command("compile")
def compile_command(
    model: ModelArg = None,
    spec: SpecOption = None,
    devices: DevicesOption = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="F", help="start from an edited plan.yaml")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="default: build/NAME")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace the bundle in DIR")] = False,
    meta: MetaOption = False,
    schedule: ScheduleOption = None,
    probe: ProbeOption = None,
    print_after: PrintAfter = None,
) -> None:
    """Cut a model, emit the bundle, prove it, write it."""
    from dnic.asked import default_folder, requested
    from dnic.compiler import compile_model
    from dnic.report import plan_notes, plan_table, verdict_table

    asked = requested(model, spec, devices, plan, meta=meta, schedule=schedule, probe=probe)
    folder = output or default_folder(asked, plan)
    with _progress(print_after) as observe:
        planned, rung = compile_model(asked, folder, force=force, observe=observe)
    out.print(plan_table(planned.plan))
    for note in plan_notes(planned.coarse, planned.plan):
        out.print(note, style="yellow", soft_wrap=True)
    out.print(verdict_table(planned.plan))
    what = "shapes" if meta else "tensors"
    out.print(
        f"proven: {rung.compared} {what} equal, largest difference {rung.max_abs_error:.1e}\n"
        f"bundle: {folder}\n"
        f"train:  dnic train {folder}",
        soft_wrap=True,
    )


@app.command("plan")
def plan_command(
    model: ModelArg = None,
    spec: SpecOption = None,
    devices: DevicesOption = None,
    meta: MetaOption = False,
    schedule: ScheduleOption = None,
    probe: ProbeOption = None,
    as_json: JsonOption = False,
    print_after: PrintAfter = None,
) -> None:
    """Show what `compile` would decide; write nothing."""
    from dnic.asked import requested
    from dnic.compiler import plan_model
    from dnic.report import plan_json, plan_notes, plan_table, verdict_table

    asked = requested(model, spec, devices, None, meta=meta, schedule=schedule, probe=probe)
    with _progress(print_after, shown=not as_json) as observe:
        planned = plan_model(asked, observe)
    if as_json:
        _print_json(plan_json(planned.plan))
    else:
        out.print(plan_table(planned.plan))
        for note in plan_notes(planned.coarse, planned.plan):
            out.print(note, style="yellow", soft_wrap=True)
        out.print(verdict_table(planned.plan))


app.command("probe")(probe_command)


@app.command("verify")
def verify_command(bundle: BundleArg, as_json: JsonOption = False) -> None:
    """Climb the proof ladder with a bundle: split, exact, oracle."""
    from dnic.proof.bundle import verify_bundle
    from dnic.report import verify_table

    with err.status("verifying") as status:
        result = verify_bundle(bundle, lambda rung: status.update(f"verifying: {rung}"))
    if as_json:
        _print_json(result)
    else:
        out.print(verify_table(result))
    if not result["passed"]:
        raise typer.Exit(1)


@app.command("train")
def train_command(
    bundle: BundleArg,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, metavar="N")] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            "--mode", metavar="MODE", help="decoupled, ddp, 1f1b, ...; default: the plan's"
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="default: DIR/runs/MODE")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, metavar="N")] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="C", help="a checkpoint, or a run's folder")
    ] = None,
    pin: Annotated[bool, typer.Option("--pin", help="a core of its own for each process")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a bundle on this machine under torchrun."""
    from dnic.bench.compare import parse_modes
    from dnic.report import result_lines
    from dnic.runtime.launch import launch, torchrun_command

    (asked,) = parse_modes(mode) if mode is not None else (None,)
    if not as_json:
        command = torchrun_command(bundle, epochs=epochs, mode=asked, out=output, seed=seed)
        out.print(f"running: {command}", soft_wrap=True)
    extra = ["--resume", str(resume.resolve())] if resume else []
    outcome = launch(
        bundle,
        epochs=epochs,
        mode=asked,
        out=output,
        seed=seed,
        pin=pin,
        quiet=as_json,
        extra=extra,
    )
    if as_json:
        _print_json(outcome.result)
    else:
        out.print(result_lines(outcome.result, outcome.run_dir), soft_wrap=True)


@app.command("compare")
def compare_command(
    bundle: BundleArg,
    modes: Annotated[
        str,
        typer.Option(
            "--modes",
            metavar="LIST",
            help="of decoupled, exact, gpipe, 1f1b, interleaved, zerobubble, zbv, ddp, backprop",
        ),
    ] = "decoupled,backprop",
    seeds: Annotated[
        str | None,
        typer.Option("--seeds", metavar="LIST", help="such as 0,1,2; default: the plan's"),
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, metavar="N")] = None,
    pin: Annotated[bool, typer.Option("--pin", help="a core of its own for each process")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a bundle in several ways, same weights and batches, and print them side by side."""
    from dnic.bench.compare import compare, parse_modes, parse_seeds
    from dnic.report import comparison_table
    from dnic.runtime.launch import torchrun_command

    rows = compare(
        bundle,
        modes=parse_modes(modes),
        seeds=parse_seeds(seeds),
        epochs=epochs,
        pin=pin,
        quiet=as_json,
    )
    if as_json:
        _print_json({"runs": rows})
        return
    out.print(comparison_table(rows))
    out.print(
        f"bundle: {bundle}\nagain:  {torchrun_command(bundle, epochs=epochs)}", soft_wrap=True
    )


@app.command("bench")
def bench_command(
    bundle: BundleArg,
    against: Annotated[
        str, typer.Option("--against", metavar="LIST", help="such as ddp,1f1b; default: all ways")
    ] = "all",
    link: Annotated[
        str | None,
        typer.Option("--link", metavar="L", help="between ranks: delay=20ms,rate=1gbit (root)"),
    ] = None,
    rounds: Annotated[
        int, typer.Option("--repeats", min=1, metavar="N", help="runs of each way, in turns")
    ] = 5,
    microbatches: Annotated[
        str, typer.Option("--microbatches", metavar="LIST", help="where batches are cut")
    ] = "2,4,8",
    trace: Annotated[
        Path | None, typer.Option("--trace", metavar="FILE", help="a trace for Perfetto")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a bundle's speed beside every other way to train it, in turns."""
    from dnic.bench.linkspec import parse_link
    from dnic.bench.rounds import bench
    from dnic.bench.variant import parse_families, parse_microbatches
    from dnic.report import bench_table

    with (err if not as_json else Console(quiet=True)).status("measuring") as status:
        result = bench(
            bundle,
            families=parse_families(against),
            microbatches=parse_microbatches(microbatches),
            link=None if link is None else parse_link(link),
            rounds=rounds,
            trace=trace,
            progress=status.update,
        )
    _print_json(result) if as_json else out.print(bench_table(result))


@app.command("draw")
def draw_command(
    target: Annotated[Path, typer.Argument(metavar="DIR|MODEL.py", help="a bundle or a model")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help=".svg, .png, .pdf or .dot")
    ],
    spec: SpecOption = None,
    devices: DevicesOption = None,
) -> None:
    """Draw the partition."""
    from dnic.asked import requested
    from dnic.codegen.planfile import read_plan_file
    from dnic.compiler import plan_model
    from dnic.graph.drawing import check_target
    from dnic.report import draw_plan

    check_target(output)
    if target.is_dir() or target.name == "plan.yaml":
        plan = read_plan_file(target)
    else:
        with _progress(None) as observe:
            plan = plan_model(requested(target, spec, devices, None), observe).plan
    draw_plan(plan, output)
    out.print(f"wrote {output}", soft_wrap=True)


@app.command("export")
def export_command(
    bundle: BundleArg,
    checkpoint: Annotated[
        Path, typer.Option("--checkpoint", metavar="C", help="a checkpoint, or a run's folder")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="model.safetensors")
    ],
) -> None:
    """Write a checkpoint as one state_dict of the original model."""
    from dnic.codegen.export import export_checkpoint

    count = export_checkpoint(bundle, checkpoint, output)
    out.print(f"wrote {count} tensors to {output}", soft_wrap=True)


@app.command("init")
def init_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL.py", help="the model file")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="SPEC")] = Path("spec.yaml"),
    force: Annotated[bool, typer.Option("--force", help="replace the file")] = False,
) -> None:
    """Write a commented starter spec."""
    from dnic.asked import write_starter

    write_starter(model, output, force=force)
    out.print(f"wrote {output}; next: dnic compile --spec {output}", soft_wrap=True)


@app.command("check")
def check_command(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="a spec (YAML)")],
) -> None:
    """Check a spec, and the model file that it names."""
    from dnic.asked import check_spec

    out.print(f"{spec}: {check_spec(spec)}", soft_wrap=True)


@app.command("calibrate")
def calibrate_command(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="profile.yaml")
    ] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="measure again what was measured fully before")
    ] = False,
    threads: Annotated[
        int, typer.Option("--threads", min=1, metavar="N", help="that a process computes with")
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """Measure this machine, for `devices.profile: auto` and as a file."""
    from dnic.cost.calibration import calibrate_machine
    from dnic.cost.profile_file import profile_text, write_profile

    with (err if not as_json else Console(quiet=True)).status("calibrating") as status:
        profile = calibrate_machine(
            threads,
            refresh=refresh,
            progress=lambda what: status.update(f"calibrating: {what}"),
        )
    if output is not None:
        write_profile(profile, output)
    if as_json:
        _print_json(profile.model_dump())
    elif output is None:
        out.print(profile_text(profile, "auto"), end="", markup=False, soft_wrap=True)
    else:
        out.print(f"wrote {output}", soft_wrap=True)


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    """Compile a PyTorch model into a training program of decoupled stages."""
    if version:
        out.print(f"dnic {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point: an error of the user's is printed once, without a traceback."""
    try:
        app()
    except DnicError as error:
        err.print(str(error), markup=False, soft_wrap=True)
        sys.exit(error.exit_status)


@contextmanager
def _progress(
    print_after: str | None, *, shown: bool = True
) -> Iterator[Callable[[str, Any], None]]:
    """Show the pass that runs; print the value after the one that was asked for."""
    from dnic.compiler import PASSES, check_pass

    check_pass(print_after)
    following = dict(zip(PASSES, (*PASSES[1:], "done"), strict=True))

    def observe(name: str, value: Any) -> None:
        status.update(following[name])
        if name == print_after:
            out.print(str(value), markup=False, soft_wrap=True)

    console = err if shown else Console(quiet=True)
    with console.status(PASSES[0]) as status:
        yield observe


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))

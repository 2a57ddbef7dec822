"""The command line: `egnn-md VERB`. torch, ase and the models load when a verb needs them, not for --help."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from egnn_md.cli import (
    check,
    convert,
    data,
    distill,
    doctor,
    evaluate,
    export,
    label,
    md,
    models,
    predict,
    relax,
    reproduce,
    rollout,
    serve,
    train,
)
from egnn_md.cli import compile as compile_verb
from egnn_md.cli.outcome import plain_warnings, report_error
from egnn_md.memory import keep_freed_memory

app = typer.Typer(
    add_completion=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from egnn_md import __version__

        typer.echo(f"egnn-md {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Molecular simulation with E(n)-equivariant neural potentials.

    **Start here:**

        egnn-md md CH3CH2OH --steps 2000 -o run/    # 1 ps of ethanol at 300 K

        egnn-md compile organic-xtb                 # once, a minute or two: all runs after it are 2-4 times as fast

        egnn-md relax molecule.xyz -o relaxed.xyz   # the nearest minimum

        egnn-md predict molecules.xyz -o table.csv  # polarizability, gap, heat capacity, …

        egnn-md info organic-xtb                    # what the model knows

        egnn-md train config.toml                   # a potential of your own

        egnn-md data nbody -o nbody.npz             # particles, for `egnn-md train` and `egnn-md rollout`

        egnn-md reproduce autoencoder --quick       # a table of the EGNN paper, ours beside the published figures

    Structures are files that ase reads, names of molecules that ase builds, or SMILES. Results go to stdout, with
    `--json` as one object; all else goes to stderr. Exit codes: 0 done, 1 the work failed (a simulation blew up, a
    relaxation did not converge), 2 a mistake in the input.
    """


app.command("md")(md.md)
app.command("compile")(compile_verb.compile)
app.command("relax")(relax.relax)
app.command("evaluate")(evaluate.evaluate)
app.command("train")(train.train)
app.command("rollout")(rollout.rollout)
app.command("reproduce")(reproduce.reproduce)
app.add_typer(data.app, name="data")
app.command("predict")(predict.predict)
app.command("distill")(distill.distill)
app.command("label")(label.label)
app.command("check")(check.check)
app.command("convert")(convert.convert)
app.command("export")(export.export)
app.command("serve")(serve.serve)
app.command("info")(models.info)
app.command("models")(models.models)
app.command("doctor")(doctor.doctor)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `egnn-md` with these arguments (sys.argv's if None); exits with a code other than 0 if something is wrong."""
    keep_freed_memory()
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    with plain_warnings():
        try:
            code = app(args=words, prog_name="egnn-md", standalone_mode=False) or 0
        except KeyboardInterrupt:
            code = 130
        except Exception as error:
            code = report_error(error)
            if code is None:
                raise
    if code:
        sys.exit(code)

"""`egnn-md data`: make data to train on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from egnn_md.cli.options import Json, Overwrite
from egnn_md.cli.outcome import Outcome, UserError, progress_bar, verb

if TYPE_CHECKING:
    from egnn_md.paper.random_graphs import Family

Train = Annotated[int, typer.Option(help="Graphs to train on.")]
Valid = Annotated[int, typer.Option(help="Graphs that choose the best model.")]
Test = Annotated[int, typer.Option(help="Graphs to test on.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed makes the same file.")]

app = typer.Typer(help="Make data to train on and to evaluate with.", no_args_is_help=True)


@app.command("nbody")
@verb
def nbody(
    particles: Annotated[int, typer.Option(help="Particles of each system.")] = 5,
    law: Annotated[str, typer.Option(help="charged (charges ±1) or springs (between half of the pairs).")] = "charged",
    dimensions: Annotated[int, typer.Option(help="Dimensions of space.")] = 3,
    train: Annotated[int, typer.Option(help="Systems to train on.")] = 3000,
    valid: Annotated[int, typer.Option(help="Systems that choose the best model.")] = 2000,
    test: Annotated[int, typer.Option(help="Systems to test on.")] = 2000,
    rollout: Annotated[int, typer.Option(help="Systems with all frames from 0 to 48, for `egnn-md rollout`.")] = 400,
    frames: Annotated[str, typer.Option(help="Frames of the other sides.")] = "20,30,40",
    seed: Seed = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, npz.")] = Path("nbody.npz"),
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> Outcome:
    """Simulate particles as in the N-body benchmark of the EGNN paper.

    Unit masses without a box, time step 0.001, a frame every 100 steps; the benchmark predicts frame 40 from frame 30.

    Example:  egnn-md data nbody --particles 5 --train 3000 --seed 43 -o nbody.npz
    """
    counts = {"train": train, "valid": valid, "test": test, "rollout": rollout}
    if min(counts.values()) < 0 or sum(counts.values()) == 0:
        raise UserError("--train, --valid, --test and --rollout must not be negative, and not all sides empty")
    try:
        chosen = [int(word) for word in frames.split(",")]
    except ValueError:
        raise UserError(f"--frames must be numbers with commas between them, not {frames!r}") from None
    _check_output(output, overwrite)
    from egnn_md.data import nbody as engine

    frames_of: dict[str, Any] = {side: engine.ROLLOUT_FRAMES if side == "rollout" else chosen for side in counts}
    last = {side: engine.STEPS_PER_FRAME * (max(frames_of[side]) + 1) for side in counts}
    total, done = sum(last[side] * count for side, count in counts.items()), 0
    with progress_bar("simulating") as progress:

        def advanced(steps: int) -> None:
            nonlocal done
            done += steps
            progress(done, total)

        made = {
            side: engine.generate(law, count, particles, (seed, k), dimensions, frames_of[side], advanced)  # type: ignore[arg-type]
            for k, (side, count) in enumerate(counts.items())
            if count
        }
    engine.write(output, made)
    values = {"output": str(output), "law": law, "n_particles": particles, "n_dim": dimensions, **counts}
    described = ", ".join(f"{count} {side}" for side, count in counts.items() if count)
    return Outcome(values, lambda: print(f"wrote {output}: {described} systems of {particles} particles"), as_json)


@app.command("qm9")
@verb
def qm9(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the archive and qm9.npz.")] = Path("data"),
    as_json: Json = False,
) -> Outcome:
    """Fetch QM9 (86 MB, from figshare), and turn it into one npz with the paper's split.

    An interrupted download goes on where it was, and its checksum is verified. Without a network it says which file to
    put where.

    Example:  egnn-md data qm9 -o data/    and then    egnn-md train qm9-full.toml --data data/
    """
    from egnn_md.data.download import fetch_qm9

    with progress_bar("fetching QM9") as progress:
        n_molecules = fetch_qm9(output, lambda name, done, total: progress(done, total))
    target = output / "qm9.npz"
    values = {"output": str(target), "n_molecules": n_molecules}
    return Outcome(values, lambda: print(f"wrote {target}: {n_molecules} molecules"), as_json)


@app.command("flow")
@verb
def flow(
    molecules: Annotated[list[str], typer.Argument(help="Files that ase reads, or molecules' names: CH3CH2OH.")],
    model: Annotated[str, typer.Option(help="The potential: a shipped model's name, or a checkpoint.")] = "organic-xtb",
    copies: Annotated[int, typer.Option(help="Copies of each molecule, side by side.")] = 128,
    segments: Annotated[int, typer.Option(help="Segments of each copy.")] = 60,
    length: Annotated[float, typer.Option(help="fs of a segment, at constant energy.")] = 7.5,
    coldest: Annotated[float, typer.Option(help="K; each copy has its own temperature.")] = 200.0,
    hottest: Annotated[float, typer.Option(help="K.")] = 600.0,
    deuterium: Annotated[float, typer.Option(help="Fraction of deuterium in every second copy.")] = 0.25,
    seed: Seed = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, npz.")] = Path("flow.npz"),
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> Outcome:
    """Simulate molecules with a potential, as training data of a flow map.

    Langevin dynamics between short segments at constant energy, a snapshot every 0.5 fs: a few minutes on one core for
    ethanol as it stands.

    Example:  egnn-md data flow CH3CH2OH --model organic-xtb -o ethanol_flow.npz
    """
    _check_output(output, overwrite)
    from egnn_md.checkpoint import load
    from egnn_md.chemistry.structures import structure_of
    from egnn_md.cli.md import identity
    from egnn_md.data import flow as engine
    from egnn_md.dynamics.starting_structures import read_structure
    from egnn_md.models.potential import Potential

    try:
        settings = engine.SegmentSettings(
            copies=copies,
            segments=segments,
            length=length,
            coldest=coldest,
            hottest=hottest,
            deuterium=deuterium,
            seed=seed,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    potential = load(model)
    if not isinstance(potential, Potential):
        raise UserError(f"{model} is a {type(potential).__name__}; this needs a potential")
    structures = [read_structure(name) for name in molecules]
    for name, atoms in zip(molecules, structures, strict=True):
        problem = structure_of(atoms).problem(potential.config.elements)
        if problem is not None or len(atoms) < 2:
            raise UserError(f"{name}: {problem or 'it has one atom: nothing flows'}")
    origin = {"potential": model, "potential_sha256": identity(model)["model_sha256"], "molecules": molecules}
    starts = [(atoms.numbers.astype("int64"), atoms.positions) for atoms in structures]
    with progress_bar("simulating") as progress:
        made = engine.make_segments(potential, starts, settings, origin, progress)
    made.save(output)
    values = {"output": str(output), "n_segments": len(made), "n_snapshots": made.n_snapshots, **origin}
    return Outcome(values, lambda: print(f"wrote {output}: {len(made)} segments of {length:g} fs"), as_json)


@app.command("community")
@verb
def community(
    train: Train = 5000,
    valid: Valid = 500,
    test: Test = 500,
    seed: Seed = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, npz.")] = Path("community.npz"),
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> Outcome:
    """Draw Community Small: two communities of 6-10 nodes, edges inside with probability 0.7, between them 0.01.

    No graph of a side is isomorphic to one of an earlier side (train, valid, test); where that cannot be had, the
    number of those that are is printed and stands in the file.

    Example:  egnn-md data community -o community.npz
    """
    return _random_graphs("community", {"train": train, "valid": valid, "test": test}, seed, output, overwrite, as_json)


@app.command("erdos-renyi")
@verb
def erdos_renyi(
    train: Train = 5000,
    valid: Valid = 500,
    test: Test = 500,
    seed: Seed = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, npz.")] = Path("erdos-renyi.npz"),
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> Outcome:
    """Draw Erdős-Rényi graphs: as many of each size from 7 to 16 nodes, edges with probability 0.25.

    Sides are kept apart as with `egnn-md data community`.

    Example:  egnn-md data erdos-renyi -o erdos-renyi.npz
    """
    counts = {"train": train, "valid": valid, "test": test}
    return _random_graphs("erdos-renyi", counts, seed, output, overwrite, as_json)


def _random_graphs(
    family: Family, counts: dict[str, int], seed: int, output: Path, overwrite: bool, as_json: bool
) -> Outcome:
    if min(counts.values()) < 1:
        raise UserError("--train, --valid and --test must be at least 1")
    _check_output(output, overwrite)
    from egnn_md.paper import random_graphs as engine

    with progress_bar("drawing") as progress:
        sides = engine.generate(family, counts, seed, progress)
    engine.write(output, sides)
    repeats = {f"{side}_repeats": graphs.repeats for side, graphs in sides.items() if side != "train"}
    values = {"output": str(output), "family": family, **counts, **repeats}
    text = ", ".join(f"{count} {side}" for side, count in counts.items())
    left = f"{repeats['valid_repeats']} valid and {repeats['test_repeats']} test"
    return Outcome(
        values,
        lambda: print(f"wrote {output}: {text} graphs; {left} graphs are isomorphic to one of an earlier side"),
        as_json,
    )


def _check_output(output: Path, overwrite: bool) -> None:
    if output.is_dir():
        raise UserError(f"{output} is a folder: -o names a file")
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists already: --overwrite replaces it, -o names another")
    if not output.absolute().parent.is_dir():
        raise UserError(f"the folder of {output} does not exist")

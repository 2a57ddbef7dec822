"""`egnn-md rollout` of molecules: a flow map and a structure in, a run folder as of `egnn-md md` out."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egnn_md.cli.jobs import run_job, several
from egnn_md.cli.md import identity, run_to_outcome
from egnn_md.cli.options import make_calculator
from egnn_md.cli.outcome import Outcome, UserError

if TYPE_CHECKING:
    from egnn_md.dynamics.simulation import Simulation
    from egnn_md.dynamics.state import RestartState
    from egnn_md.models.flow import FlowMap

STRIDE, STEPS, STATE_SECONDS = 10.0, 10_000, 10.0
CHUNK = 64
"""Molecules of a file of many that are done together."""


@dataclass(frozen=True)
class Asked:
    """Options of the command line; None where it says nothing."""

    stride: float | None = None
    """fs."""
    ensemble: str | None = None
    temperature: float | None = None
    friction: float | None = None
    steps: int | None = None
    interval: int | None = None
    seed: int | None = None
    format: str | None = None
    potential: str | None = None
    """Whose energies the filter tests and the log shows; None: the flow map's own."""
    energy_filter: bool | None = None

    def settings(self) -> dict[str, Any]:
        """Those of `MDSettings` that were given."""
        names = ("ensemble", "temperature", "friction", "steps", "interval", "seed", "format")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        given |= {name: given[name].lower() for name in ("ensemble", "format") if name in given}
        return given if self.stride is None else {**given, "timestep": self.stride}


def molecules(name: str, model: FlowMap, start: str | None, output: Path, given: dict[str, Any]) -> Outcome:
    """Begin a rollout in the folder `output`, or go on with the one there. `given`: options by name."""
    asked = Asked(**{field.name: given[field.name] for field in fields(Asked)})
    if given["resume"]:
        if given["overwrite"] or start is not None:
            raise UserError("--resume goes on with the rollout in --output: give no start and no --overwrite")
        simulation = _resume(name, model, output, asked, given["compile"])
    elif start is not None and several(start):
        return _many(name, Path(start), output, asked, given)
    else:
        assert start is not None
        simulation = _start(name, model, start, output, asked, given["overwrite"], given["compile"])
    return run_to_outcome(simulation, output, STATE_SECONDS, given["as_json"], f"egnn-md rollout {name} --resume -o")


def _many(name: str, file: Path, folder: Path, asked: Asked, given: dict[str, Any]) -> Outcome:
    """All molecules of a file, in batches; the same command goes on after a kill."""
    from egnn_md.dynamics.flow_worker import RolloutWorker
    from egnn_md.dynamics.settings import MDSettings

    if asked.potential is not None or given["compile"]:
        raise UserError("--potential and --compile are for one molecule; FILE@0 takes the first of a file")
    if asked.format not in (None, "extxyz"):
        raise UserError("the trajectories of many structures are written as extxyz")
    _check_ensemble(asked)
    defaults = {"seed": 0, "timestep": STRIDE, "steps": STEPS}
    settings = MDSettings(**{**defaults, **asked.settings(), "format": "extxyz"})
    worker = RolloutWorker(name, settings, asked.energy_filter is not False)
    work = {"verb": "rollout", **settings.to_dict(), "energy_filter": worker.energy_filter, **identity(name)}
    pool: dict[str, Any] = {"size": CHUNK, "workers": 1, "shard": None, "executor": "process"}
    pool["overwrite"] = given["overwrite"]
    text, as_json = "rolling out", given["as_json"]
    return run_job(file, folder / "trajectory.extxyz", worker, work, text=text, as_json=as_json, **pool)


def _check_ensemble(asked: Asked) -> None:
    """Raise UserError for a stride or an ensemble that rollouts do not have."""
    from egnn_md.dynamics.flow_strides import SHORTEST_STRIDE

    if asked.stride is not None and not asked.stride >= SHORTEST_STRIDE:
        raise UserError(f"--stride must be at least {SHORTEST_STRIDE} fs, not {asked.stride}")
    ensemble = (asked.ensemble or "nvt").lower()
    if asked.energy_filter and ensemble == "nve":
        raise UserError("--filter tests strides between a thermostat's steps: it goes with --ensemble nvt")
    if ensemble == "npt":
        raise UserError("rollouts are of isolated molecules: --ensemble nvt or nve")


def _start(
    name: str, model: FlowMap, structure: str, folder: Path, asked: Asked, overwrite: bool, compile: bool
) -> Simulation:
    import secrets

    from egnn_md.dynamics import flow_rollouts as rollout
    from egnn_md.dynamics.settings import MDSettings
    from egnn_md.dynamics.starting_structures import read_structure
    from egnn_md.dynamics.state import refuse_old_run

    _check_ensemble(asked)
    defaults = {"seed": secrets.randbits(31), "timestep": STRIDE, "steps": STEPS}
    settings = MDSettings(**{**defaults, **asked.settings()})
    if not overwrite:
        refuse_old_run(folder)
    atoms = read_structure(structure)
    if asked.potential is not None:
        atoms.calc = make_calculator(asked.potential, "cpu", "float32")
    information = {"structure": structure, "model": name, "potential": asked.potential, **identity(name)}
    kept = asked.energy_filter is not False
    return rollout.start(atoms, model, settings, folder, information, overwrite, energy_filter=kept, compile=compile)


def _resume(name: str, model: FlowMap, folder: Path, asked: Asked, compile: bool) -> Simulation:
    from egnn_md.dynamics import flow_rollouts as rollout
    from egnn_md.dynamics.state import RestartState

    state = RestartState.load(folder / "state.npz")
    if "energy_filter" not in state.information:
        raise UserError(f"the run in {folder} is no rollout: egnn-md md --resume goes on with it")
    if identity(name)["model_sha256"] != state.information["model_sha256"]:
        raise UserError(f"{name} is not the model that the run in {folder} was begun with")
    _check_same(state, folder, asked)
    potential = state.information["potential"]
    calculator = None if potential is None else make_calculator(potential, "cpu", "float32")
    return rollout.resume(state, folder, model, calculator, asked.steps, compile=compile)


def _check_same(state: RestartState, folder: Path, asked: Asked) -> None:
    """Refuse options that contradict the run; repeating its own is fine."""
    begun = {
        **state.settings.to_dict(),
        "stride": state.settings.timestep,
        "potential": state.information["potential"],
        "energy_filter": state.information["energy_filter"],
    }
    for option in (field.name for field in fields(asked) if field.name != "steps"):
        value = getattr(asked, option)
        if value is not None and value != begun[option]:
            raise UserError(
                f"the run in {folder} was begun with {option} {begun[option]}: it cannot go on with {value}"
            )

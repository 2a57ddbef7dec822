"""A ligand in water, EGNN inside and Amber around it (openmm-ml's mixed system): stable? What is at the ends of lambda?

Alanine dipeptide in TIP3P water, PME, rigid water, the dipeptide's constraints removed. First the energies at
lambda_interpolate 1 and 0, on the Reference platform, beside the mixed system and Amber. Then NVT dynamics of the mixed
system at 300 K on the CPU platform, watching the dipeptide's bonds: each stays below 1.7 times the sum of the covalent
radii, and no new one forms below 1.2 times.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import torch
from _common import make_parser, parse, write_json
from openmm import app, unit
from openmmml import MLPotential

from egnn_md.chemistry.units import ANGSTROM_PER_NM, BOLTZMANN, KJ_PER_MOL_PER_EV
from egnn_md.dynamics.bonds import BondWatch

DIPEPTIDE = Path(__file__).parents[1] / "examples" / "alanine_dipeptide.pdb"


def solvate(box: float) -> tuple[app.Modeller, openmm.System]:
    """The dipeptide in a cube of water (edge in nm), and Amber's system for it."""
    pdb, field = app.PDBFile(str(DIPEPTIDE)), app.ForceField("amber14-all.xml", "amber14/tip3p.xml")
    model = app.Modeller(pdb.topology, pdb.positions)
    model.addSolvent(field, boxSize=openmm.Vec3(box, box, box) * unit.nanometer)
    cutoff = min(0.9, 0.45 * box) * unit.nanometer
    system = field.createSystem(model.topology, nonbondedMethod=app.PME, nonbondedCutoff=cutoff, constraints=app.HBonds)
    return model, system


def without_constraints(system: openmm.System, atoms: set[int]) -> openmm.System:
    copy = openmm.XmlSerializer.clone(system)
    for k in reversed(range(copy.getNumConstraints())):
        if set(copy.getConstraintParameters(k)[:2]) <= atoms:
            copy.removeConstraint(k)
    return copy


def energy(system: openmm.System, positions: Any, **parameters: float) -> float:
    """kJ/mol, on the Reference platform."""
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(positions)
    for name, value in parameters.items():
        context.setParameter(name, value)
    return float(context.getState(energy=True).getPotentialEnergy()._value)


def ends(
    potential: MLPotential, model: app.Modeller, amber: openmm.System, ligand: list[int], **options: Any
) -> dict[str, float]:
    """How far lambda 1 is from the mixed system (relative) and lambda 0 from Amber (kJ/mol)."""
    between = potential.createMixedSystem(model.topology, amber, ligand, interpolate=True, **options)
    mixed = energy(potential.createMixedSystem(model.topology, amber, ligand, **options), model.positions)
    bare = energy(without_constraints(amber, set(ligand)), model.positions)
    one = energy(between, model.positions, lambda_interpolate=1.0)
    zero = energy(between, model.positions, lambda_interpolate=0.0)
    return {"lambda_1_relative": abs(one - mixed) / abs(mixed), "lambda_0_kj_per_mol": abs(zero - bare)}


def simulate(system: openmm.System, model: app.Modeller, n_ligand: int, options: Any) -> dict[str, Any]:
    step = options.timestep * 1e-3
    integrator = openmm.LangevinMiddleIntegrator(300.0, 1.0, step)
    integrator.setRandomNumberSeed(1)
    platform = openmm.Platform.getPlatformByName("CPU")
    context = openmm.Context(system, integrator, platform, {"Threads": str(options.threads)})
    context.setPositions(model.positions)
    openmm.LocalEnergyMinimizer.minimize(context, 10.0, 100)
    context.setVelocitiesToTemperature(300.0, 1)

    def ligand() -> np.ndarray:
        state = context.getState(positions=True)  # in one piece: OpenMM wraps on output alone
        return state.getPositions(asNumpy=True)._value[:n_ligand] * ANGSTROM_PER_NM

    numbers = [atom.element.atomic_number for atom in model.topology.atoms()][:n_ligand]
    watch = BondWatch(torch.tensor(ligand()), torch.tensor(numbers), torch.tensor([n_ligand]))
    temperatures, began = [], time.perf_counter()
    freedom = sum(3 for k in range(system.getNumParticles()) if system.getParticleMass(k)._value)
    freedom -= system.getNumConstraints() + 3
    n_frames = round(options.ps / step) // options.interval
    for k in range(n_frames):
        integrator.step(options.interval)
        watch.look((k + 1) * options.interval * step, torch.from_numpy(ligand()))
        kinetic = context.getState(energy=True).getKineticEnergy()._value
        temperatures.append(2 * kinetic / (freedom * BOLTZMANN * KJ_PER_MOL_PER_EV))
        if (k + 1) % max(n_frames // 10, 1) == 0:
            print(f"{(k + 1) * options.interval * step:.1f} ps, {temperatures[-1]:.0f} K", flush=True)
    seconds = time.perf_counter() - began
    return {
        "ps": n_frames * options.interval * step,
        "bonds_kept": not watch.first,
        "first_event": watch.first.get(0),
        "mean_temperature_K": float(np.mean(temperatures[n_frames // 5 :])),
        "ns_per_day": 86.4 * options.ps / seconds,
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = make_parser(__doc__ or "", data=False)
    parser.add_argument("--ps", type=float, default=50.0)
    parser.add_argument("--timestep", type=float, default=1.0, help="fs")
    parser.add_argument("--interval", type=int, default=50, help="steps between looks at the bonds")
    parser.add_argument("--box", type=float, default=2.2, help="edge of the water box, nm")
    parser.add_argument("--precision", choices=("single", "double"), default="single", help="of the dynamics")
    options = parse(parser, arguments)
    model, amber = solvate(options.box)
    ligand = list(range(22))
    potential = MLPotential("egnn", model=options.model)
    result: dict[str, Any] = {"n_atoms": amber.getNumParticles()}
    result |= ends(potential, model, amber, ligand, precision="double")
    print(result, flush=True)
    mixed = potential.createMixedSystem(model.topology, amber, ligand, precision=options.precision)
    result |= simulate(mixed, model, len(ligand), options)
    print(result)
    write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()

"""Boxes of water, and a cheap periodic teacher for them: SPC/Fw, a flexible water model, by OpenMM.

    python examples/water_teacher.py boxes.extxyz
    egnn-md distill water_teacher:spc_fw boxes.extxyz -o water --temperature 300 --labels 60 --budget 12m
    egnn-md md boxes.extxyz@1 --model water/model.safetensors --dtype float32 --ensemble npt --timestep 1 --steps 20000

(the second command in the folder of this file). The boxes have several densities, since dynamics of `egnn-md distill`
keeps the volume: what pressure does is learned from the stress of each.
SPC/Fw: Wu, Tepper and Voth, J. Chem. Phys. 124, 024503 (2006).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import openmm
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.geometry import wrap_positions
from ase.io import write
from ase.md.langevin import Langevin
from openmm import unit

OXYGEN, HYDROGEN = -0.82, 0.41
BOND, ANGLE = 1.012, np.deg2rad(113.24)
STIFF, BENT = 1059.162, 75.90  # kcal/mol per Å² and per rad²
SIGMA, EPSILON = 3.165492, 0.1554253  # Å, kcal/mol
CUTOFF = 6.0  # Å
KJ = units.kJ / units.mol  # eV


class Water(Calculator):  # type: ignore[misc]
    """SPC/Fw of a periodic box of atoms in the order O, H, H, O, H, H, …: eV, eV/Å, eV/Å³."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces", "stress"]
    context: openmm.Context | None = None

    def calculate(
        self, atoms: Atoms | None = None, properties: Any = ("energy",), system_changes: Any = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        if list(self.atoms.numbers) != [8, 1, 1] * (len(self.atoms) // 3) or not self.atoms.pbc.all():
            raise ValueError("SPC/Fw knows periodic boxes of atoms in the order O, H, H")
        if self.context is None or self.context.getSystem().getNumParticles() != len(self.atoms):
            self.context = context(len(self.atoms) // 3, self.atoms.cell.array)
        energy, forces = self.at(self.atoms.positions, self.atoms.cell.array)
        self.results = {"energy": energy, "forces": forces}
        if "stress" in properties:
            self.results["stress"] = self.stress(self.atoms.positions, self.atoms.cell.array)

    def at(self, positions: np.ndarray, cell: np.ndarray) -> tuple[float, np.ndarray]:
        """Energy (eV) and forces (eV/Å)."""
        assert self.context is not None
        self.context.setPeriodicBoxVectors(*(openmm.Vec3(*row) for row in 0.1 * cell))
        self.context.setPositions(0.1 * positions)
        state = self.context.getState(getEnergy=True, getForces=True)
        forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.angstrom)
        return state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) * KJ, np.asarray(forces) * KJ

    def stress(self, positions: np.ndarray, cell: np.ndarray, step: float = 1e-4) -> np.ndarray:
        """Voigt's six (eV/Å³) from energies of strained boxes. A shear is half a rotation: one triangle is enough, that
        which keeps the box vectors in the form that OpenMM wants.
        """
        found = []
        for i, j in ((0, 0), (1, 1), (2, 2), (2, 1), (2, 0), (1, 0)):
            energies = []
            for sign in (1, -1):
                strain = np.eye(3)
                strain[i, j] += sign * step
                energies.append(self.at(positions @ strain, cell @ strain)[0])
            found.append((energies[0] - energies[1]) / (2 * step * abs(np.linalg.det(cell))))
        return np.array(found)


def context(n_molecules: int, cell: np.ndarray) -> openmm.Context:
    """OpenMM's, in double precision."""
    system = openmm.System()
    charges, bonds, angles = openmm.NonbondedForce(), openmm.HarmonicBondForce(), openmm.HarmonicAngleForce()
    charges.setNonbondedMethod(openmm.NonbondedForce.PME)
    charges.setCutoffDistance(0.1 * CUTOFF)
    charges.setUseSwitchingFunction(True)
    charges.setSwitchingDistance(0.1 * (CUTOFF - 1))
    charges.setUseDispersionCorrection(False)
    charges.setEwaldErrorTolerance(1e-5)
    kcal = 4.184
    for first in range(0, 3 * n_molecules, 3):
        for mass, charge, epsilon in ((15.999, OXYGEN, EPSILON), (1.008, HYDROGEN, 0.0), (1.008, HYDROGEN, 0.0)):
            system.addParticle(mass)
            charges.addParticle(charge, 0.1 * SIGMA, kcal * epsilon)
        for other in (first + 1, first + 2):
            bonds.addBond(first, other, 0.1 * BOND, 100 * kcal * STIFF)
            charges.addException(first, other, 0.0, 1.0, 0.0)
        angles.addAngle(first + 1, first, first + 2, ANGLE, kcal * BENT)
        charges.addException(first + 1, first + 2, 0.0, 1.0, 0.0)
    for force in (charges, bonds, angles):
        system.addForce(force)
    system.setDefaultPeriodicBoxVectors(*(openmm.Vec3(*row) for row in 0.1 * cell))
    return openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))


def spc_fw() -> Water:
    """The teacher: a fresh calculator."""
    return Water()


def box(n_side: int, density: float, seed: int) -> Atoms:
    """n_side³ molecules on a lattice, turned at random, at `density` g/cm³."""
    generator = np.random.default_rng(seed)
    length = (n_side**3 * 18.015 / (density * 0.602214)) ** (1 / 3)
    half = ANGLE / 2
    molecule = BOND * np.array([[0, 0, 0], [np.sin(half), np.cos(half), 0], [-np.sin(half), np.cos(half), 0]])
    places = (np.indices((n_side,) * 3).reshape(3, -1).T + 0.5) * length / n_side
    turns = np.linalg.qr(generator.normal(size=(len(places), 3, 3)))[0]
    positions = np.concatenate([place + molecule @ turn for place, turn in zip(places, turns, strict=True)])
    return Atoms("OH2" * len(places), positions, cell=[length] * 3, pbc=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="extxyz")
    parser.add_argument("--side", type=int, default=4, help="4: 64 molecules")
    parser.add_argument("--density", type=float, nargs="+", default=[0.93, 0.99, 1.05], help="g/cm³")
    parser.add_argument("--ps", type=float, default=2.0, help="dynamics of each box at 300 K")
    options = parser.parse_args(arguments)
    boxes = []
    for seed, density in enumerate(options.density):
        atoms = box(options.side, density, seed)
        atoms.calc = Water()
        generator = np.random.default_rng(seed)
        dynamics = Langevin(atoms, units.fs, temperature_K=300, friction=0.02 / units.fs, fixcm=False, rng=generator)
        dynamics.run(round(1000 * options.ps))
        positions = wrap_positions(atoms.positions[::3], atoms.cell)  # whole molecules, oxygens in the box
        atoms.positions += np.repeat(positions - atoms.positions[::3], 3, axis=0)
        print(f"{density} g/cm³: {atoms.get_potential_energy() / len(atoms[::3]):.3f} eV a molecule", flush=True)
        boxes.append(Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True))
    write(options.output, boxes)


if __name__ == "__main__":
    main()

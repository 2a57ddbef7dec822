"""Vibrational spectrum of a flow map's rollouts beside that of force-driven dynamics.

Power spectra of the mass-weighted velocities, averaged over copies of a molecule. Both sides start from the same
states and go on at constant energy, without a filter: strides taken back would cut the vibrations short. Without it a
flow map heats in the end, so the copies are many and short, and temperatures stand below. The reference takes small
steps: velocity Verlet at 0.5 fs alone raises an O-H stretch by 17 cm⁻¹, a part (ω Δt)²/24 of it. Each peak of the
reference is compared with the nearest of the other spectrum.

    python benchmarks/flow_spectrum.py --stride 2 -o spectrum.png
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import load_potential, make_parser, parse, print_table, write_json
from numpy.typing import NDArray

from egnn_md.chemistry.units import BOLTZMANN
from egnn_md.dynamics.ase_flow import FlowDynamics, load_flow
from egnn_md.dynamics.batched import Batch, State, Thermostat, run
from egnn_md.dynamics.motion import spectrum
from egnn_md.evaluation.figures import figure

FloatArray = NDArray[np.float64]
LOWEST = 200.0  # cm⁻¹
SHARE = 0.03
"""Peaks lower than this part of the highest are not counted."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    from ase.build import molecule

    parser = make_parser(__doc__ or "", data=False)
    parser.add_argument("--flow", default="ethanol-flow", help="shipped name or path of a flow map")
    parser.add_argument("--molecule", default="CH3CH2OH", help="a name that ase.build.molecule knows")
    parser.add_argument("--stride", type=float, default=2.0, help="fs")
    parser.add_argument("--timestep", type=float, default=0.25, help="fs, of the reference")
    parser.add_argument("--ps", type=float, default=2.0, help="of each copy")
    parser.add_argument("--copies", type=int, default=50)
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="also draw both spectra")
    options = parse(parser, arguments)
    atoms = molecule(options.molecule)
    flow, masses = load_flow(options.flow), atoms.get_masses()
    starts, true = reference(atoms, options)
    made = np.empty_like(true)
    for k, (positions, velocities) in enumerate(starts):
        copy = atoms.copy()
        copy.positions = positions
        copy.set_momenta(masses[:, None] * velocities)
        dynamics = FlowDynamics(copy, flow, options.stride)
        for step in range(true.shape[1]):
            dynamics.step()
            made[k, step] = copy.get_momenta() / masses[:, None]
    wavenumbers, expected = spectrum(true, masses, options.stride)
    _, found = spectrum(made, masses, options.stride)
    peaks = compared(wavenumbers, expected, found)
    print_table("peaks, cm⁻¹", ["force-driven", "flow map", "shift"], [list(peak.values()) for peak in peaks])
    temperatures = {name: kinetic(part, masses) for name, part in (("force-driven", true), ("flow map", made))}
    result: dict[str, Any] = {
        "temperatures_K": temperatures,
        "peaks": peaks,
        "largest_shift": max(abs(peak["shift"]) for peak in peaks),
    }
    halves = [[name, *values] for name, values in temperatures.items()]
    print_table("kinetic temperature, K", ["", "first half", "second half"], halves)
    print(f"\nlargest shift {result['largest_shift']:.0f} cm⁻¹")
    if options.output is not None:
        drawn, axes = figure(8.0)
        axes.plot(wavenumbers, expected, label=f"force-driven, {options.timestep:g} fs")
        axes.plot(wavenumbers, found, ls="--", label=f"flow map, {options.stride:g} fs")
        axes.set(xlabel="wavenumber / cm⁻¹", ylabel="spectrum of velocities", xlim=(0, 4000), yticks=[])
        axes.legend()
        drawn.savefig(options.output, dpi=150)
    write_json(options.json, result)
    return result


def reference(atoms: Any, options: Any) -> tuple[list[tuple[FloatArray, FloatArray]], FloatArray]:
    """Starts of the copies, and velocities (n_copies, n_strides, n_atoms, 3) from there on, force-driven."""
    copies = options.copies
    batch = Batch(load_potential(options.model, "float32"), [atoms] * copies)
    generator = torch.Generator().manual_seed(options.seed)
    target = torch.full((copies,), options.temperature, dtype=torch.float64)
    state = run(batch, batch.start(2.0 * target, generator), 2000, 1.0, thermostat=Thermostat(target, 5.0, generator))
    parts = (part.double().numpy().reshape(copies, len(atoms), 3) for part in (state.positions, state.velocities))
    starts, frames = list(zip(*parts, strict=True)), []

    def keep(step: int, state: State) -> None:
        frames.append(state.velocities.double().numpy().reshape(copies, len(atoms), 3))

    every = round(options.stride / options.timestep)
    steps = round(1e3 * options.ps / options.stride) * every
    run(batch, state, steps, options.timestep, every=every, observe=keep)
    return starts, np.stack(frames, 1)


def kinetic(velocities: FloatArray, masses: FloatArray) -> list[float]:
    """Kinetic temperature, K, of either half of the time."""
    energies = (masses[:, None] * velocities**2).mean((0, 2, 3)) / BOLTZMANN
    return [float(half.mean()) for half in np.array_split(energies, 2)]


def compared(wavenumbers: FloatArray, expected: FloatArray, found: FloatArray) -> list[dict[str, float]]:
    """The peaks of `expected`, and the one of `found` that is nearest to each."""
    from scipy.signal import find_peaks

    high = SHARE * expected[wavenumbers > LOWEST].max()

    def places(power: FloatArray) -> FloatArray:
        shown = np.where(wavenumbers > LOWEST, power, 0.0)
        k, _ = find_peaks(shown, height=high, prominence=0.3 * high)
        before, at, after = shown[k - 1], shown[k], shown[k + 1]  # the top of the parabola through three points
        places: FloatArray = wavenumbers[k] + 0.5 * wavenumbers[1] * (before - after) / (before - 2 * at + after)
        return places

    others = places(found)
    pairs = [(float(true), float(others[np.argmin(np.abs(others - true))])) for true in places(expected)]
    return [{"true": true, "found": other, "shift": other - true} for true, other in pairs]


if __name__ == "__main__":
    main()

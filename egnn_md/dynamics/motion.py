"""What momenta tell: temperatures by kind of motion and by element, the spectrum, and how long velocities remember.

A propagator that loses equipartition, or shifts vibrations, shows it here.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from egnn_md.chemistry.elements import symbol
from egnn_md.chemistry.units import BOLTZMANN, CM_PER_FS

FloatArray = NDArray[np.float64]
SMOOTH: Final = 8.0
"""cm⁻¹, standard deviation of the Gaussian that smooths a spectrum."""
SEGMENT: Final = 4000.0
"""fs: longer trajectories are cut into overlapping pieces, whose spectra are averaged."""


class Rigid(NamedTuple):
    """How a molecule moves as a whole."""

    drift: FloatArray
    """Velocity of the centre of mass, (3,)."""
    turning: FloatArray
    """Velocity of each atom by rotation about it, (n_atoms, 3)."""
    rotation: float
    """Kinetic energy of that rotation, eV."""
    n_rotations: int
    """3, of a linear molecule 2, of an atom 0."""
    freedom: FloatArray
    """Of each atom's three degrees of freedom, those that are neither translation nor rotation, (n_atoms,)."""


def rigid_motion(masses: FloatArray, positions: FloatArray, momenta: FloatArray) -> Rigid:
    """masses (n_atoms,) amu; positions and momenta (n_atoms, 3), Å and ase's units."""
    drift = momenta.sum(0) / masses.sum()
    centred = positions - masses @ positions / masses.sum()
    angular = np.cross(centred, momenta - masses[:, None] * drift).sum(0)
    inertia = np.einsum("i,ij,ik->jk", masses, centred, centred)
    moments, axes = np.linalg.eigh(np.trace(inertia) * np.eye(3) - inertia)
    kept = moments > 1e-6 * max(float(moments.max()), 1e-12)
    moments, axes = moments[kept], axes.T[kept]
    around = np.cross(axes[:, None], centred)  # (n_rotations, n_atoms, 3)
    rates = (axes @ angular) / moments
    freedom = 3.0 - 3.0 * masses / masses.sum() - masses * ((around**2).sum(-1) / moments[:, None]).sum(0)
    return Rigid(drift, np.tensordot(rates, around, 1), 0.5 * float(moments @ rates**2), len(moments), freedom)


def by_motion(masses: FloatArray, positions: FloatArray, momenta: FloatArray) -> dict[str, float]:
    """Temperatures (K) of a molecule's translation, rotation and internal motion, NaN for kinds that it does not have.

    masses (n_atoms,) amu; positions and momenta (n_atoms, 3), Å and ase's units.
    """
    rigid = rigid_motion(masses, positions, momenta)
    total = 0.5 * float((momenta**2 / masses[:, None]).sum())
    translation = 0.5 * float(masses.sum() * (rigid.drift**2).sum())
    kinds = {
        "translation": (translation, 3),
        "rotation": (rigid.rotation, rigid.n_rotations),
        "internal": (total - translation - rigid.rotation, 3 * len(masses) - 3 - rigid.n_rotations),
    }
    return {name: 2.0 * energy / (n * BOLTZMANN) if n else float("nan") for name, (energy, n) in kinds.items()}


def by_element(
    numbers: NDArray[np.int64], masses: FloatArray, positions: FloatArray, momenta: FloatArray
) -> dict[str, float]:
    """Temperature (K) of each element's atoms, by symbol: of what is neither translation nor rotation of the whole, by
    the degrees of freedom that this leaves them; nothing held fixed. NaN where it leaves none.
    """
    rigid = rigid_motion(masses, positions, momenta)
    internal = momenta / masses[:, None] - rigid.drift - rigid.turning
    twice = masses * (internal**2).sum(1) / BOLTZMANN
    kinds = {symbol(int(z)): numbers == z for z in np.unique(numbers)}
    freedom = {name: float(rigid.freedom[of].sum()) for name, of in kinds.items()}
    return {
        name: float(twice[of].sum()) / freedom[name] if freedom[name] > 1e-6 else float("nan")
        for name, of in kinds.items()
    }


def spectrum(velocities: FloatArray, masses: FloatArray, interval: float) -> tuple[FloatArray, FloatArray]:
    """Wavenumbers (cm⁻¹) and the smoothed power of the mass-weighted velocities, which sums to 1.

    velocities (n_copies, n_times, n_atoms, 3) in any unit, `interval` fs apart; masses (n_atoms,). Motions faster than
    two intervals appear where they are not: 4 fs resolve 4,170 cm⁻¹.
    """
    n = min(velocities.shape[1], round(SEGMENT / interval))
    window, power = np.hanning(n)[:, None, None], np.zeros(2 * n + 1)
    for copy in velocities:
        for start in range(0, len(copy) - n + 1, max(1, n // 2)):
            waves = np.fft.rfft(window * copy[start : start + n], 4 * n, axis=0)
            power += ((waves.real**2 + waves.imag**2) * masses[:, None]).sum((1, 2))
    wavenumbers = np.asarray(np.fft.rfftfreq(4 * n, interval) / CM_PER_FS, np.float64)
    reach = np.arange(-4 * SMOOTH, 4 * SMOOTH + 1e-9, wavenumbers[1])
    kernel = np.exp(-0.5 * (reach / SMOOTH) ** 2)
    smoothed = np.convolve(power, kernel / kernel.sum(), "same")[: len(power)]
    return wavenumbers, smoothed / smoothed.sum()


def autocorrelation(velocities: FloatArray, masses: FloatArray, n_lags: int) -> FloatArray:
    """⟨Σ m v(0)·v(t)⟩ over its value at t = 0, for the first lags: velocities (n_times, n_atoms, 3) -> (n_lags,)."""
    n = len(velocities)
    waves = np.fft.rfft(velocities, 2 * n, axis=0)
    power = ((waves.real**2 + waves.imag**2) * masses[:, None]).sum((1, 2))
    products = np.fft.irfft(power, 2 * n)[: min(n_lags, n)]
    means = products / (n - np.arange(len(products)))
    return np.asarray(means / means[0])

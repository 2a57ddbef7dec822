"""Second derivatives from forces: exact for polynomials that the stencil covers, symmetric, those of the energy."""

from __future__ import annotations

import numpy as np
import pytest

from egnn_md.hessian import ATOMS_AT_ONCE, FloatArray, finite_difference_hessian


def quartic(rng: np.random.Generator, n_atoms: int) -> tuple[FloatArray, FloatArray]:
    """Coefficients of V = ½ x·A x + Σ c_a x_a⁴."""
    matrix = rng.normal(size=(3 * n_atoms, 3 * n_atoms))
    return matrix + matrix.T, rng.normal(size=3 * n_atoms)


@pytest.mark.parametrize("n_atoms", [1, 4, 60])
def test_exact_where_forces_are_polynomials_of_the_fourth_degree(n_atoms: int) -> None:
    rng = np.random.default_rng(0)
    matrix, quartics = quartic(rng, n_atoms)
    positions = rng.normal(size=(n_atoms, 3))
    calls = []

    def forces_of(copies: FloatArray) -> FloatArray:
        calls.append(copies.shape[0] * copies.shape[1])
        x = copies.reshape(len(copies), -1)
        return -(x @ matrix + 4.0 * quartics * x**3).reshape(copies.shape)

    exact = matrix + np.diag(12.0 * quartics * positions.reshape(-1) ** 2)
    hessian = finite_difference_hessian(forces_of, positions, step=0.05)
    np.testing.assert_allclose(hessian, exact, atol=1e-11 * n_atoms)
    assert (hessian == hessian.T).all()
    assert sum(calls) == 12 * n_atoms * n_atoms
    assert max(calls) <= max(ATOMS_AT_ONCE, 4 * n_atoms)


def test_the_error_falls_with_the_fourth_power_of_the_step() -> None:
    positions = np.full((1, 3), 0.3)

    def error(step: float) -> float:
        hessian = finite_difference_hessian(lambda x: -np.exp(3.0 * x), positions, step)
        return float(np.abs(np.diag(hessian) / (3.0 * np.exp(0.9)) - 1.0).max())

    assert error(0.1) / error(0.05) == pytest.approx(16.0, rel=0.1)


@pytest.mark.parametrize("step", [0.0, -0.001, 1.0, float("nan")])
def test_useless_steps_are_refused(step: float) -> None:
    with pytest.raises(ValueError, match="step must lie between"):
        finite_difference_hessian(lambda x: x, np.zeros((2, 3)), step)

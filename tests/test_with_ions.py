"""What is put together for the training of egnn-xtb."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

RECIPES = Path(__file__).parents[1] / "recipes"


def frames(**columns: Any) -> dict[str, Any]:
    """Of two atoms each, at a place of its own."""
    n = len(columns["tag"])
    rng = np.random.default_rng(len(columns))
    arrays = {"n_atoms": np.full(n, 2), "atomic_numbers": np.full(2 * n, 8), "energy": np.arange(float(n))}
    arrays |= {"positions": rng.normal(size=(2 * n, 3)), "forces": np.zeros((2 * n, 3)), "dipole": np.zeros((n, 3))}
    return arrays | {name: np.array(values) for name, values in columns.items()}


def test_rare_kinds_stand_more_often_and_tested_molecules_not_at_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(RECIPES))
    recipe = importlib.import_module("with_ions")
    first = frames(
        tag=["thermal", "ion", "ion", "bound", "alone", "alone"],
        group=["CC", "[Na+]", "[Na+]", "O.[K+]", "O", "gdb8"],
        charge=np.array([0.0, 1.0, 1.0, 1.0, 0.0, 0.0]),
    )
    first["charges"] = np.zeros(12)
    second = frames(tag=["M"] * 5, gdb=[1, 7, 20, 659, 31])
    np.savez(tmp_path / "labelled.npz", **first)
    np.savez(tmp_path / "frames.npz", **second)
    recipe.main(tmp_path / "labelled.npz", tmp_path / "frames.npz", tmp_path / "whole.npz")
    whole = dict(np.load(tmp_path / "whole.npz"))
    counts = dict(zip(*np.unique(whole["tag"], return_counts=True), strict=True))
    assert counts == {"thermal": 3, "bound": 2, "alone": 1, "M": 2, "ion": 2 + recipe.LONE_IONS - 1}
    assert set(whole["group"][whole["tag"] == "M"]) == {"1", "31"}
    assert len(whole["positions"]) == whole["n_atoms"].sum() == 2 * len(whole["tag"])
    where = np.repeat(whole["tag"] == "thermal", 2)
    assert np.array_equal(whole["positions"][where], np.tile(first["positions"][:2], (3, 1)))
    assert np.isnan(whole["charges"][np.repeat(whole["tag"] == "M", 2)]).all()

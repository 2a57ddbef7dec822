"""All parts of a data set in one file for training and one for testing, with fitted energies of the elements."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

PER_PART = ("dropped_reason", "dropped_count")


def merge(out: Path) -> None:
    """`train.npz` and `test.npz` from the parts, each replaced whole; a line of counts to the log."""
    parts = sorted((out / "parts").glob("*.npz"))
    counts = {}
    for side in ("train", "test"):
        chosen = [part for part in parts if part.name.startswith("test") == (side == "test")]
        if not chosen:
            continue
        loaded = []
        for part in chosen:
            with np.load(part) as arrays:
                loaded.append(dict(arrays))
        names = [name for name in loaded[0] if name not in PER_PART]
        data = {name: np.concatenate([arrays[name] for arrays in loaded]) for name in names}
        if side == "train":
            data["reference_numbers"], data["reference_energies"] = reference_energies(data)
        path = out / f"{side}.npz"
        with path.with_suffix(".partial").open("wb") as file:
            np.savez(file, **data)
        path.with_suffix(".partial").replace(path)
        counts[side] = dict(Counter(data["tag"].tolist()).most_common())
        dropped: Counter[str] = Counter()
        for arrays in loaded:
            dropped.update(dict(zip(arrays["dropped_reason"].tolist(), arrays["dropped_count"].tolist(), strict=True)))
        print(f"{side}.npz: {len(data['n_atoms'])} frames {counts[side]}, dropped {dict(dropped)}", flush=True)


def reference_energies(data: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Elements and their energies (eV) by least squares; metals occur as cations only, so theirs are a cation's."""
    elements = np.unique(data["atomic_numbers"])
    owner = np.repeat(np.arange(len(data["n_atoms"])), data["n_atoms"])
    counts = np.zeros((len(data["n_atoms"]), len(elements)))
    np.add.at(counts, (owner, np.searchsorted(elements, data["atomic_numbers"])), 1.0)
    # per atom, so that large structures do not rule
    weights = 1.0 / data["n_atoms"]
    energies = np.linalg.lstsq(counts * weights[:, None], data["energy"] * weights, rcond=None)[0]
    return elements, energies

"""The tables of the EGNN paper (arXiv 2102.09844): which trainings make them, and the published figures.

The configurations lie beside this file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from egnn_md.chemistry.targets import unit_of

CONFIGS: Final = Path(__file__).parent


@dataclass(frozen=True)
class Row:
    """One training and what the paper says of it."""

    name: str
    config: str
    """A file in `CONFIGS`."""
    paper: Mapping[str, float | None]
    """Published figures by the name they have in the held-out errors; None: the paper has no such row."""
    changes: Mapping[str, str] = field(default_factory=dict)
    """Keys of the configuration that differ, with their TOML values."""
    of: str = ""
    """Which of the held-out errors, where there are several (a property)."""


@dataclass(frozen=True)
class PaperTable:
    """A table: its data, its rows, and by what factor --quick shortens the trainings."""

    make_data: Callable[[Path, bool], None]
    """Leaves the data files of the configurations in a folder; True: few samples will do."""
    rows: tuple[Row, ...]
    quick: int = 20


def _nbody_data(folder: Path, quick: bool) -> None:
    from egnn_md.data import nbody

    counts = {"train": 500, "valid": 200, "test": 200} if quick else {"train": 3000, "valid": 2000, "test": 2000}
    sides = {side: nbody.generate("charged", count, 5, (43, k)) for k, (side, count) in enumerate(counts.items())}
    nbody.write(folder / "nbody_charged5.npz", sides)


def _graph_data(folder: Path, quick: bool) -> None:
    from typing import get_args

    from egnn_md.paper import random_graphs

    counts = {"train": 1000, "valid": 100, "test": 100} if quick else {"train": 5000, "valid": 500, "test": 500}
    for family in get_args(random_graphs.Family):
        random_graphs.write(folder / f"{family}.npz", random_graphs.generate(family, counts, 0))


def _qm9_data(folder: Path, quick: bool) -> None:
    from egnn_md.data.download import fetch_qm9

    if not (folder / "qm9.npz").exists():
        fetch_qm9(folder)


def _qm9_row(name: str, published: float) -> Row:
    rate = "1e-3" if name in ("homo", "lumo", "gap") else "5e-4"
    changes = {"targets": f'["{name}"]', "name": f'"qm9-paper-{name}"', "learning_rate": rate}
    return Row(f"{name} / {unit_of(name)}", "qm9-paper.toml", {"mae": published}, changes, of=name)


def _graph_rows(name: str, config: str, published: Mapping[str, tuple[float, float, float]]) -> tuple[Row, ...]:
    needs = {"radial-field": {"optimizer": '"adam"', "learning_rate": "2e-3"}}  # under Muon it diverges
    return tuple(
        Row(
            f"{name}, {encoder}",
            config,
            dict(zip(("bce", "error_percent", "f1"), values, strict=True)),
            {"encoder": f'"{encoder}"', **needs.get(encoder, {})},
        )
        for encoder, values in published.items()
    )


TABLES: Final[dict[str, PaperTable]] = {
    "nbody": PaperTable(
        _nbody_data,
        (
            Row("EGNN", "nbody-paper.toml", {"mse": 0.0071}),
            Row("integrator (ours)", "nbody.toml", {"mse": None}),
        ),
    ),
    "qm9": PaperTable(
        _qm9_data,
        tuple(
            _qm9_row(name, published)
            for name, published in {
                "alpha": 0.071,
                "gap": 48.0,
                "homo": 29.0,
                "lumo": 25.0,
                "mu": 0.029,
                "cv": 0.031,
                "g298": 12.0,
                "h298": 12.0,
                "r2": 0.106,
                "u298": 12.0,
                "u0": 11.0,
                "zpve": 1.55,
            }.items()
        ),
        quick=2000,
    ),
    "autoencoder": PaperTable(
        _graph_data,
        _graph_rows(
            "Community Small",
            "autoencoder.toml",
            {
                "gnn": (6.75, 1.29, 0.980),
                "noise-gnn": (3.32, 0.44, 0.993),
                "radial-field": (9.22, 1.19, 0.981),
                "egnn": (2.14, 0.06, 0.999),
            },
        )
        + _graph_rows(
            "Erdős-Rényi",
            "autoencoder-erdos-renyi.toml",
            {
                "gnn": (14.15, 4.62, 0.907),
                "noise-gnn": (4.56, 1.25, 0.975),
                "radial-field": (6.78, 1.63, 0.968),
                "egnn": (1.65, 0.11, 0.998),
            },
        ),
    ),
}


def figures(
    loop: Any, row: Row, configs: Path, folder: Path, shorter: int, say: Callable[[str], None]
) -> dict[str, float]:
    """Train one row in `folder`, unless it is done there; its errors on the test side, by the paper's names.

    loop: `egnn_md.training.loop`; shorter: by which factor to cut the steps; `say` is told what begins.
    """
    from egnn_md.checkpoint import read_header

    run = folder / re.sub(r"[^\w]+", "-", row.name.lower()).strip("-")
    model = run / "model.safetensors"
    if not model.exists():
        say(f"training {row.name}")
        if (run / "config.toml").exists():
            loop.resume(run)
        else:
            config = folder / f"{run.name}.toml"
            config.write_text(_changed((configs / row.config).read_text(), row.changes, shorter))
            loop.train(config, folder, run)
    held_out = read_header(model)["held_out"]["test"]
    errors = held_out[row.of] if row.of else held_out
    return {key: errors[key] for key in row.paper}


def _changed(text: str, changes: Mapping[str, str], shorter: int) -> str:
    """A configuration with other values of keys that it has, and with fewer steps."""

    def shortened(match: re.Match[str]) -> str:
        return f"{match[1]}{max(1, int(match[2]) // shorter)}"

    for key, value in changes.items():
        text, n = re.subn(rf"^({key} = ).*$", rf"\g<1>{value}", text, flags=re.MULTILINE)
        assert n == 1, f"{n} keys {key} in the configuration"
    if shorter > 1:  # to compile would take longer than to train
        text = re.sub(r"^compile = true$", "compile = false", text, flags=re.MULTILINE)
    return re.sub(
        r"^((?:max_steps|validate_every|warmup_steps|checkpoint_every) = )(\d+)$", shortened, text, flags=re.MULTILINE
    )

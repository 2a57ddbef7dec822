"""`egnn-md reproduce`: a table of the EGNN paper (arXiv 2102.09844), our figures beside the published ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from egnn_md.cli.options import Json, Threads, set_threads
from egnn_md.cli.outcome import Outcome, UserError, say, table, verb
from egnn_md.paper.reproduce import CONFIGS, TABLES, Row, figures


@verb
def reproduce(
    name: Annotated[str, typer.Argument(metavar="TABLE", help="nbody, qm9 or autoencoder.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Few samples, and 20 times fewer steps (qm9: 2000): minutes.")
    ] = False,
    only: Annotated[str, typer.Option(help="Only rows whose name has this in it.")] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder.", show_default="reproduce-TABLE[-quick]")
    ] = None,
    configs: Annotated[
        Path | None, typer.Option(help="Folder of the configurations.", show_default="the package's own")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> Outcome:
    """Train what a table of the EGNN paper compares, and print our figures beside the published ones.

    Data are made in the folder first; QM9 is fetched, unless the folder has qm9.npz (see egnn-md data qm9). Trainings
    that are finished there are not repeated, and one that was interrupted goes on. --quick shows that all works; its
    figures are far from final.

    Example:  egnn-md reproduce autoencoder --quick
    """
    if name not in TABLES:
        raise UserError(f"no table {name!r}: there are {', '.join(TABLES)}")
    chosen = TABLES[name]
    rows = [row for row in chosen.rows if only.lower() in row.name.lower()]
    if not rows:
        raise UserError(f"no row has {only!r} in its name: {'; '.join(row.name for row in chosen.rows)}")
    configs = configs or CONFIGS
    missing = [row.config for row in rows if not (configs / row.config).is_file()]
    if missing:
        raise UserError(f"no {missing[0]} in {configs}: leave --configs out, or name a folder that has it")
    set_threads(threads)
    from egnn_md.cli.train import _training_loop

    loop = _training_loop()
    folder = output or Path(f"reproduce-{name}{'-quick' if quick else ''}")
    folder.mkdir(parents=True, exist_ok=True)
    made, way = folder / "data-made", "quick" if quick else "full"
    if not made.exists():
        say(f"making data in {folder}")
        chosen.make_data(folder, quick)
        made.write_text(way)
    elif made.read_text() != way:
        raise UserError(f"{folder} holds a {made.read_text()} run, this is a {way} one: choose another folder with -o")
    shorter = chosen.quick if quick else 1
    found = {row.name: figures(loop, row, configs, folder, shorter, say) for row in rows}
    values = {row.name: {"ours": found[row.name], "paper": dict(row.paper)} for row in rows}
    return Outcome({"table": name, "quick": quick, "rows": values}, lambda: _show(name, rows, found), as_json)


def _show(name: str, rows: list[Row], found: Mapping[str, Mapping[str, float]]) -> None:
    keys = list(rows[0].paper)
    columns = ["", *(f"{key} {who}" for key in keys for who in ("ours", "paper"))]
    cells = []
    for row in rows:
        cells.append([row.name])
        for key in keys:
            published = row.paper[key]
            cells[-1] += [f"{found[row.name][key]:.3g}", "" if published is None else f"{published:.3g}"]
    table(f"{name}: test side, ours and as published", columns, cells, numbers=True)

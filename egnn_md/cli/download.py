"""`egnn-md download`: public data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from egnn_md.cli.options import Json
from egnn_md.cli.outcome import Outcome, UserError, verb


@verb
def download(
    name: Annotated[str, typer.Argument(help="qm9.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder.")] = Path("data"),
    as_json: Json = False,
) -> Outcome:
    """Fetch a public data set: QM9 (86 MB, from figshare), and turn it into one npz.

    An interrupted download goes on where it was, and its checksum is verified.

    Example:  egnn-md download qm9 -o data/    and then    egnn-md train qm9-full.toml --data data/
    """
    if name != "qm9":
        raise UserError(f"no data set {name!r}: there is qm9")
    from egnn_md.data.download import download_qm9
    from egnn_md.data.qm9 import read_qm9, write_qm9

    with _progress() as progress:
        archive = download_qm9(output, progress)
    molecules = read_qm9(archive)
    target = output / "qm9.npz"
    write_qm9(molecules, target)
    values = {"file": str(target), "n_molecules": len(molecules)}
    return Outcome(values, lambda: print(f"{target}: {len(molecules)} molecules"), as_json)


class _progress:  # noqa: N801
    """A bar on stderr for each file, while it is a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import DownloadColumn, Progress

        console = Console(stderr=True)
        columns = (*Progress.get_default_columns(), DownloadColumn())
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> Any:
        self.bar.start()
        return self.update

    def update(self, name: str, done: int, total: int) -> None:
        if name not in self.tasks:
            self.tasks[name] = self.bar.add_task(name)
        self.bar.update(self.tasks[name], completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

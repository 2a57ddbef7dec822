"""`egnn-md check`: does a potential obey the laws that every potential obeys?"""

from __future__ import annotations

from typing import Annotated

import typer

from egnn_md.cli.options import Json, Threads, check_device, parse_dtype, set_threads
from egnn_md.cli.outcome import Outcome, verb


@verb
def check(
    model: Annotated[str, typer.Argument(help="A shipped model's name, or a checkpoint.")] = "organic-xtb",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float64",
    seed: Annotated[int, typer.Option(help="Of the random structures.")] = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> Outcome:
    """Put a potential through the laws: symmetries, forces against energies, batches, extensivity, the cutoff.

    On random structures of the model's elements: how well it knows chemistry is another question (egnn-md evaluate).
    Exit code 1 if a law is broken.

    Example:  egnn-md check organic-xtb
    """
    set_threads(threads)
    check_device(device)
    parse_dtype(dtype)
    import warnings

    from egnn_md.laws import check_laws, report
    from egnn_md.predict import ExtrapolationWarning, Predictor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)  # random structures are unlike any training data
        results = check_laws(Predictor(model, device=device, dtype=dtype), precision=dtype, seed=seed)
    broken = [result.law for result in results if not result.holds]

    def show() -> None:
        from rich.console import Console
        from rich.table import Table

        table = Table("law", "deviation", "tolerance", "holds")
        for row in report(results):
            table.add_row(*row)
        Console().print(table)

    values = {
        "model": model,
        "laws": {result.law: {"deviation": result.deviation, "holds": result.holds} for result in results},
        "broken": broken,
    }
    return Outcome(values, show, as_json, 1 if broken else 0)

"""Options of the verbs that take many structures, and what they set in motion."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from egnn_md.cli.options import check_device, parse_dtype
from egnn_md.cli.outcome import Outcome, UserError, positive, progress_bar

if TYPE_CHECKING:
    from egnn_md.dynamics.many import ModelSpec
    from egnn_md.jobs.chunks import Worker

Workers = Annotated[int, typer.Option("--workers", help="Worker processes, one thread each.")]
Shard = Annotated[
    str | None,
    typer.Option("--shard", metavar="i/n", help="Do the i-th of n parts: job arrays.", show_default=False),
]
Executor = Annotated[
    str,
    typer.Option("--executor", help="process, dask, dask:ADDRESS, parsl, executorlib, or module:callable of your own."),
]
Batch = Annotated[
    str,
    typer.Option(
        "--batch",
        metavar="auto|N",
        help="Structures in one call: auto bounds their atoms and pairs (best on a CPU); a number is taken as it is.",
    ),
]


def chunk_size(chunk: int, at_once: int | None) -> int:
    """A chunk holds at least one batch. Raises UserError."""
    positive("chunk", chunk)
    return max(chunk, at_once or 1)


NEEDED = {
    "potential": "this needs a potential, which has forces",
    "property": "predict needs a model of properties, such as qm9",
}
"""By kind of model: what to say to those who give another."""


def parse_batch(text: str) -> int | None:
    """'auto' -> None, '64' -> 64. Raises UserError."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--batch is auto or a number of structures, at least 1, not {text!r}")
    return int(text)


def parse_shard(text: str | None) -> tuple[int, int]:
    """'2/8' -> (2, 8). Raises UserError."""
    if text is None:
        return 1, 1
    first, slash, second = text.partition("/")
    if not (slash and first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second)):
        raise UserError(f"--shard is i/n with 1 <= i <= n, such as 3/8, not {text!r}")
    return int(first), int(second)


def fingerprint(path: Path) -> dict[str, Any]:
    """What tells a file's content from another's; of large ones, the ends."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(1 << 20))
        if size > 1 << 20:
            file.seek(-min(size, 1 << 20), 2)
            digest.update(file.read())
    return {"bytes": size, "sha256": digest.hexdigest()}


def several(structure: str) -> bool:
    """Whether this is a file of more than one structure; what cannot be read is left to others to refuse."""
    from egnn_md.data.frames import DataError
    from egnn_md.jobs.source import holds_several

    try:
        return Path(structure).is_file() and holds_several(Path(structure))
    except (DataError, OSError):
        return False


def model_spec(model: str, device: str, dtype: str, kind: str = "potential", option: str = "") -> ModelSpec:
    """A model for workers. Raises UserError for bad options and for another kind, CheckpointError for the model."""
    parse_dtype(dtype)
    check_device(device)
    from egnn_md.checkpoint import read_header, resolve, shipped_name
    from egnn_md.dynamics.many import ModelSpec

    found = read_header(model).get("kind")
    if found != kind:
        raise UserError(f"{option}{model} is a model of kind {found!r}; {NEEDED[kind]}")
    return ModelSpec(shipped_name(model) or str(resolve(model).resolve()), device, dtype)


def run_job(
    file: Path,
    output: Path,
    worker: Worker,
    work: dict[str, Any],
    *,
    size: int,
    workers: int,
    shard: str | None,
    executor: str,
    overwrite: bool,
    text: str,
    as_json: bool,
) -> Outcome:
    """All structures of `file` through `worker` into `output`; exit code 1 if none came through. Leaves a report."""
    from egnn_md.evaluation.figures import without_failing
    from egnn_md.jobs.chunks import Job
    from egnn_md.jobs.executors import make_executor
    from egnn_md.jobs.source import read_items
    from egnn_md.report.jobs import TRAJECTORIES, job_page

    items, part = read_items(file), parse_shard(shard)
    with make_executor(executor, workers) as pool, progress_bar(text) as progress:  # refused before files are written
        if work["verb"] in TRAJECTORIES:
            output.parent.mkdir(parents=True, exist_ok=True)
        job = Job(output, worker, {**work, "input": fingerprint(file)}, size=size, shard=part, overwrite=overwrite)
        counts = job.run(items, pool, workers, progress)
    values = {"output": str(output), "n": counts.done, "n_failed": counts.failed, "finished": counts.finished}
    page = output.with_name("report.html" if work["verb"] in TRAJECTORIES else f"{output.stem}-report.html")
    if counts.finished:
        with without_failing(str(page)):
            job_page(work["verb"], output, job.table, file.name).write(page)
            values["report"] = str(page)

    def show() -> None:
        if counts.finished:
            look = f"; open {page}" if "report" in values else ""
            print(f"{output}: {counts.done} structures, {counts.failed} failed; see {job.table}{look}")
        else:
            print(f"{job.parts}: {counts.done} structures done so far, {counts.failed} failed; other shards go on")

    return Outcome(values, show, as_json, int(counts.done == 0 < counts.failed))

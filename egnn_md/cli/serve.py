"""`egnn-md serve`: a model that stays loaded, for programs that start anew at every step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from egnn_md.cli.options import Json, Threads, check_device, parse_dtype, set_threads
from egnn_md.cli.outcome import Outcome, UserError, announce, say, verb


@verb
def serve(
    model: Annotated[str, typer.Argument(help="A shipped model's name, or a checkpoint.")] = "organic-xtb",
    socket: Annotated[Path | None, typer.Option(help="Unix socket to make; only you may open it.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of 127.0.0.1 instead; 0: any free one.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="With --port: file to write the token into.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float64",
    threads: Threads = None,
    as_json: Json = False,
) -> Outcome:
    """Answer requests for energies and forces until Ctrl-C.

    Programs that start a new process at every step (ORCA's ExtOpt with `egnn-md-orca`, scripts) wait seconds for torch
    each time; a server is asked in milliseconds. A request is a line of JSON: see the guide. With --json the address is
    printed as one object once it answers.

    Example:  egnn-md serve organic-xtb --socket egnn.sock
    """
    set_threads(threads)
    check_device(device)
    parse_dtype(dtype)
    if (socket is None) == (port is None):
        raise UserError("say where: --socket PATH, or --port N with --token-file PATH")
    if (port is None) != (token_file is None):
        raise UserError("--port and --token-file belong together: everybody on this machine can reach a port")
    from egnn_md.calculators.server import Server, local_door, unix_door
    from egnn_md.predict import Predictor

    predictor = Predictor(model, device=device, dtype=dtype)
    if socket is not None:
        door, token, where = unix_door(socket), None, str(socket)
    else:
        assert port is not None
        assert token_file is not None
        door = local_door(port)
        token, where = _write_token(token_file), str(door.getsockname()[1])

    def ready() -> None:
        say(f"{model} at {where}; Ctrl-C ends it")
        if as_json:
            announce({"model": model, "address": where, "dtype": dtype, "device": device})

    try:
        _run(Server(predictor, token), door, ready)
    finally:
        door.close()
        for file in (socket, token_file):
            if file is not None:
                file.unlink(missing_ok=True)
    return Outcome({"model": model, "address": where}, lambda: None, False)


def _run(server: Any, door: Any, ready: Callable[[], None]) -> None:
    """Until SIGINT or SIGTERM."""
    import asyncio
    import signal

    async def run() -> None:
        task = asyncio.ensure_future(server.run(door, ready))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            say("server ended")

    asyncio.run(run())


def _write_token(file: Path) -> str:
    """A new token in a new file that only its owner can read."""
    import os
    import secrets

    token = secrets.token_urlsafe(32)
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise UserError(f"{file} exists: choose another name, or remove it if no server uses it") from None
    with os.fdopen(descriptor, "w") as handle:
        handle.write(token + "\n")
    return token

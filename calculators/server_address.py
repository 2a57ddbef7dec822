"""Where a server listens, and its token. For clients that start in milliseconds: it imports next to nothing."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # that of typing costs as much as all the rest of a client
if TYPE_CHECKING:
    from typing import TypeAlias

    File: TypeAlias = str | os.PathLike[str]

SERVER = "EGNN_MD_SERVER"
"""Environment variable with the address of the server."""
TOKEN_FILE = "EGNN_MD_TOKEN_FILE"
"""Environment variable with the path of its token."""


class ServerError(RuntimeError):
    """The server refused a request, or there is none; the message says what to do."""


def find_server(address: File | int | None = None, token_file: File | None = None) -> tuple[int | str, str | None]:
    """A port of 127.0.0.1 or the path of a Unix socket, and the token that a port wants.

    None: what the environment says. Raises ServerError.
    """
    given = os.environ.get(SERVER) if address is None else str(address)
    if given is None:
        raise ServerError(f"which server? Give its socket or port, or set {SERVER}; `egnn-md serve` starts one")
    port = given.removeprefix("127.0.0.1:")
    if not port.isdecimal():
        return given, None
    file = token_file or os.environ.get(TOKEN_FILE)
    if file is None:
        raise ServerError(f"a server on a port wants its token: give the token file, or set {TOKEN_FILE}")
    try:
        with open(file) as content:
            return int(port), content.read().strip()
    except OSError as error:
        raise ServerError(f"the token file {file} cannot be read: {error.strerror}") from None


def nobody_there(address: int | str, error: Exception) -> ServerError:
    """What to say when no connection can be made."""
    return ServerError(f"no server answers at {address} ({error}): start one with `egnn-md serve`")

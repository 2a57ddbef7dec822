"""Asks an `egnn-md serve` process for energies and forces. Standard library only: it starts in milliseconds.

with Client("egnn.sock") as client:
    answer = client.predict([8, 1, 1], [[0, 0, 0.12], [0, 0.76, -0.48], [0, -0.76, -0.48]])
answer["energy"], answer["forces"]  # eV, eV/Å
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from typing import Any, Final, Self, TypeAlias

File: TypeAlias = "str | os.PathLike[str]"

SERVER: Final = "EGNN_MD_SERVER"
"""Environment variable with the address of the server."""
TOKEN_FILE: Final = "EGNN_MD_TOKEN_FILE"
"""Environment variable with the path of its token."""


class ServerError(RuntimeError):
    """The server refused a request, or there is none; the message says what to do."""


class Client:
    """One connection to a server.

    address: path of a Unix socket, or a port of 127.0.0.1; None: $EGNN_MD_SERVER. token_file: of a server on a port;
    None: $EGNN_MD_TOKEN_FILE. Raises ServerError if there is no server.
    """

    def __init__(self, address: File | int | None = None, token_file: File | None = None) -> None:
        address = os.environ.get(SERVER) if address is None else address
        if address is None:
            raise ServerError(f"which server? Give its socket or port, or set {SERVER}; `egnn-md serve` starts one")
        port = str(address).removeprefix("127.0.0.1:")
        family = socket.AF_INET if port.isdecimal() else socket.AF_UNIX
        self._token = _token(token_file or os.environ.get(TOKEN_FILE)) if family == socket.AF_INET else None
        self._socket = socket.socket(family)
        try:
            self._socket.connect(("127.0.0.1", int(port)) if family == socket.AF_INET else str(address))
        except (OSError, OverflowError) as error:
            self._socket.close()
            raise ServerError(f"no server answers at {address} ({error}): start one with `egnn-md serve`") from None
        self._answers = self._socket.makefile("rb")

    def predict(self, numbers: Sequence[int], positions: Sequence[Sequence[float]], **more: Any) -> dict[str, Any]:
        """Energy (eV), forces (eV/Å) and more of a structure, as plain numbers and lists; positions in Å.

        `more`: cell, pbc, charge, multiplicity, stress. Raises ServerError.
        """
        request = {"numbers": numbers, "positions": positions, **more}
        if self._token is not None:
            request["token"] = self._token
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            line = self._answers.readline()
        except OSError as error:
            raise ServerError(f"the connection to the server broke: {error}") from None
        if not line:
            raise ServerError("the server closed the connection")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ServerError(answer["error"])
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._answers.close()
        self._socket.close()


def _token(file: File | None) -> str:
    if file is None:
        raise ServerError(f"a server on a port wants its token: give the token file, or set {TOKEN_FILE}")
    try:
        with open(file) as content:
            return content.read().strip()
    except OSError as error:
        raise ServerError(f"the token file {file} cannot be read: {error.strerror}") from None

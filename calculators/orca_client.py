"""`egnn-md-orca`: what ORCA calls for energy and gradient (`! ExtOpt`), and asks a running `egnn-md serve`.

ORCA writes NAME_EXT.extinp.tmp (a structure's file, charge, multiplicity, cores, whether it wants the gradient, perhaps
a file of point charges) and reads NAME_EXT.engrad, in Hartree and Bohr. A call is a new process, whose time goes into
imports: so there are as few as can be (no json, argparse, socket, typing), and units are the server's business.
"""

from __future__ import annotations

import os
import sys

from egnn_md.calculators.server_address import SERVER, TOKEN_FILE, ServerError, find_server, nobody_there

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from egnn_md.calculators.server_address import File
_TEXT = '{"engrad": "'
"""Before the file for ORCA, in the server's answer."""


def read_request(file: str) -> tuple[str, int, int, bool]:
    """Path of the structure's xyz file (Å), charge, multiplicity, whether the gradient is wanted.

    Raises ValueError for a file that is no request, and for point charges.
    """
    with open(file) as content:
        lines = [line.split("#")[0].strip() for line in content]
    fields = [line for line in lines if line]
    if len(fields) < 5:
        raise ValueError(f"{file} is no input of ORCA's ExtOpt: it has {len(fields)} fields of 5")
    if len(fields) > 5:
        raise ValueError(f"ORCA sends point charges ({fields[5]}): this model has no embedding in charges")
    return os.path.join(os.path.dirname(file), fields[0]), int(fields[1]), int(fields[2]), fields[4] != "0"


def read_xyz(file: str) -> tuple[list[str], list[list[float]]]:
    """Symbols and positions, Å. Raises ValueError for a file that is no xyz."""
    with open(file) as content:
        lines = content.read().splitlines()
    try:
        atoms = [line.split() for line in lines[2 : 2 + int(lines[0])]]
        symbols, positions = [atom[0].capitalize() for atom in atoms], [[float(x) for x in atom[1:4]] for atom in atoms]
        if not all(symbol.isalpha() for symbol in symbols) or not all(abs(x) < 1e300 for row in positions for x in row):
            raise ValueError("an element or a position is none")
    except (IndexError, ValueError) as error:
        raise ValueError(f"{file} is no xyz file: {error}") from None
    return symbols, positions


def ask(request: str, address: File | int | None = None, token_file: File | None = None) -> str:
    """The server's answer to one request: an object of JSON without its last brace. Raises ServerError."""
    import _socket  # without what `socket` imports

    where, token = find_server(address, token_file)
    connection = _socket.socket(_socket.AF_INET if isinstance(where, int) else _socket.AF_UNIX)
    try:
        try:
            connection.connect(("127.0.0.1", where) if isinstance(where, int) else where)
        except (OSError, OverflowError) as error:
            raise nobody_there(where, error) from None
        end = "}\n" if token is None else f', "token": "{token}"}}\n'
        unsent = memoryview((request + end).encode())
        while unsent:
            unsent = unsent[connection.send(unsent) :]
        answer = b""
        while not answer.endswith(b"\n"):
            received = connection.recv(1 << 16)
            if not received:
                raise ServerError("the server closed the connection")
            answer += received
    except OSError as error:
        raise ServerError(f"the connection to the server broke: {error}") from None
    finally:
        connection.close()
    return answer.decode()


def main(arguments: Sequence[str] | None = None) -> None:
    """Answer one request of ORCA; ends with one line on stderr and exit code 1 if that cannot be done."""
    file, server, token_file = _options(sys.argv[1:] if arguments is None else list(arguments))
    try:
        structure, charge, multiplicity, gradient = read_request(file)
        symbols, positions = read_xyz(structure)
        names = ", ".join(f'"{symbol}"' for symbol in symbols)
        request = f'{{"symbols": [{names}], "positions": {positions}, "charge": {charge}, '
        request += f'"multiplicity": {multiplicity}, "engrad": {"true" if gradient else "false"}'
        answer = ask(request, server, token_file).strip()
        if not answer.startswith(_TEXT):
            import json

            raise ServerError(json.loads(answer).get("error", "the server is of another version"))
        with open(os.path.splitext(structure)[0] + ".engrad", "w") as output:
            output.write(answer[len(_TEXT) : -2].replace("\\n", "\n"))
    except (ServerError, ValueError, OSError) as error:
        sys.exit(f"egnn-md-orca: {error}")


def _options(arguments: list[str]) -> tuple[str, str | None, str | None]:
    """The request's file, --server and --token-file."""
    known = {"--server": SERVER, "--token-file": TOKEN_FILE}
    found = dict(zip(arguments[1::2], arguments[2::2], strict=False))
    if arguments and arguments[0][:1] != "-" and len(arguments) % 2 and found.keys() <= known.keys():
        return arguments[0], found.get("--server"), found.get("--token-file")
    import argparse

    parser = argparse.ArgumentParser(prog="egnn-md-orca", description="Energy and gradient for ORCA's ExtOpt.")
    parser.add_argument("extinp", help="NAME_EXT.extinp.tmp, from ORCA")
    parser.add_argument("--server", help=f"socket or port of `egnn-md serve` (default: ${SERVER})")
    parser.add_argument("--token-file", help=f"of a server on a port (default: ${TOKEN_FILE})")
    options = parser.parse_args(arguments)
    return options.extinp, options.server, options.token_file


if __name__ == "__main__":
    main()

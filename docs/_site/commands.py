"""Pages of the command line, one for each verb, from the verbs themselves."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import typer

from egnn_md.cli import app

NO_PANEL = "Options"
FLAG = re.compile(r"(?<![\w`-])(--[a-z][\w-]*)")


@cache
def pages() -> dict[str, str]:
    """File name -> Markdown, in the order of the verbs; a group of verbs is one page."""
    root: Any = typer.main.get_command(app)
    return {f"cli-{name}.md": _page(name, command) for name, command in root.commands.items() if not command.hidden}


def _page(name: str, command: Any) -> str:
    parts = [f"# egnn-md {name}", _help(command)]
    if hasattr(command, "commands"):
        for sub, child in command.commands.items():
            parts += [f"## egnn-md {name} {sub}", _help(child), *_parameters(child, "###")]
    else:
        parts += _parameters(command, "##")
    return "\n\n".join(parts) + "\n"


def _help(command: Any) -> str:
    """The help text; an example is a line of code."""
    line = re.compile(r"^(?:Example:|and then|or with|or|   )\s+(egnn-md .*)$", re.MULTILINE)
    text = line.sub(r"```bash\n\1\n```", command.help or "")
    return "\n".join(part if part.startswith("egnn-md ") else FLAG.sub(r"`\1`", part) for part in text.splitlines())


def _parameters(command: Any, mark: str) -> list[str]:
    """Tables of arguments and of each panel of options."""
    panels: dict[str, list[str]] = {}
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or parameter.name == "help":
            continue
        is_option = parameter.param_type_name == "option"
        title = (getattr(parameter, "rich_help_panel", None) or NO_PANEL) if is_option else "Arguments"
        panels.setdefault(title, []).append(_row(parameter, is_option))
    head = "| | | default |\n|---|---|---|\n"
    return [f"{mark} {title}\n\n{head}{''.join(rows)}" for title, rows in panels.items()]


def _row(parameter: Any, is_option: bool) -> str:
    flags = [*parameter.opts, *parameter.secondary_opts] if is_option else [parameter.name.upper()]
    shown, default = parameter.show_default, parameter.default
    if isinstance(shown, str):
        default = shown
    elif parameter.required:
        default = "required" if is_option else ""
    elif default is None or default is False or callable(default):
        default = ""
    text = FLAG.sub(r"`\1`", (parameter.help or "").replace("|", "\\|"))
    return f"| {', '.join(f'`{flag}`' for flag in flags)} | {text} | {default} |\n"

"""Docstrings as Markdown: the "Parameters" block, `name: what it is` line by line, becomes a list."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"(?:^>>> .*\n?(?:(?!>>>).+\n?)*)+", re.MULTILINE)
SECTION = re.compile(r"^(\w[\w ]*)\n-{3,}\n((?:.+\n?)*)", re.MULTILINE)


def as_markdown(text: str) -> str:
    """The text of a docstring with its underlined blocks as bold titles and lists, and its examples as code."""
    text = EXAMPLE.sub(lambda match: f"```pycon\n{match[0].rstrip()}\n```\n", text)
    return SECTION.sub(lambda match: f"**{match[1]}**\n\n{_list(match[2])}\n", text)


def _list(lines: str) -> str:
    """`a, b: words` with indented continuations, as a Markdown list; anything else stays text."""
    items: list[str] = []
    for line in lines.splitlines():
        named = re.match(r"([\w*., ]+): (.*)", line)
        if named and not line.startswith(" "):
            names = ", ".join(f"`{name.strip()}`" for name in named[1].split(","))
            items.append(f"- {names}: {named[2]}")
        else:
            items.append(f"  {line.strip()}")
    return "\n".join(items)


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is rendered."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)

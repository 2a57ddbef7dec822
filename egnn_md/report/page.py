"""One HTML file to look at: numbers, a molecule that turns and plays, charts, tables. It needs no network.

The viewer is 3Dmol.js (BSD-3-Clause, see 3Dmol.LICENSE), packed into every page; a content security policy forbids the
page to fetch anything.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from egnn_md.report.scene import Particles, Scene
from egnn_md.storage import write_whole

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


@dataclass(frozen=True)
class Table:
    """Rows below a heading; numbers stand to the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""


@dataclass(frozen=True)
class Page:
    """What a report says; `html` renders it, `write` puts it into a file.

    `tiles` are (name, value) of the numbers on top, `bad` the names of those that should worry; `charts` are SVG
    figures of `egnn_md.report.charts` ("" is left out).
    """

    title: str
    subtitle: str = ""
    tiles: Sequence[tuple[str, str]] = ()
    bad: Sequence[str] = ()
    scene: Scene | Particles | None = None
    charts: Sequence[str] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = field(default_factory=tuple)

    def html(self) -> str:
        """The whole document as text."""
        shown = self.scene is not None and len(self.scene.frames) > 0
        charts = [chart for chart in self.charts if chart]
        data = self.scene.to_dict() if self.scene is not None else {"frames": [], "moving": False}
        parts = [
            f"<h1>{escape(self.title)}</h1>",
            f'<p class="dim">{escape(self.subtitle)}</p>' if self.subtitle else "",
            self._tiles(),
            f'<div class="grid2">{_VIEWER if shown else ""}{"".join(charts)}</div>',
            *(_table(table) for table in self.tables),
            f"<footer>{''.join(f'<p>{escape(note)}</p>' for note in self.notes)}</footer>",
            f'<script type="application/json" id="data">{_json(data)}</script>',
            f"<!--\n{_text('3Dmol.LICENSE').replace('--', '- -')}\n-->" if shown else "",
            f'<script type="application/gzip" id="viewer-code">{_viewer_code()}</script>' if shown else "",
            f"<script>{_text('page.js')}</script>" if shown else '<script>document.body.dataset.ready = "yes"</script>',
        ]
        return _HEAD.format(title=escape(self.title), policy=POLICY, css=_text("page.css")) + "\n".join(parts) + _END

    def _tiles(self) -> str:
        made = [
            f'<div class="tile{" bad" if name in self.bad else ""}"><span class="dim">{escape(name)}</span>'
            f"<b>{escape(value)}</b></div>"
            for name, value in self.tiles
        ]
        return f'<div class="tiles">{"".join(made)}</div>' if made else ""

    def write(self, path: str | Path) -> Path:
        """Write the page, whole or not at all. Raises OSError."""
        with write_whole(path) as temporary:
            temporary.write_text(self.html(), encoding="utf-8")
        return Path(path)

    def _repr_html_(self) -> str:
        """In a notebook: the page in a frame of its own."""
        return f'<iframe srcdoc="{escape(self.html())}" width="100%" height="620" style="border:0"></iframe>'


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    note = f'<p class="dim">{escape(table.note)}</p>' if table.note else ""
    return f'<h2>{escape(table.title)}</h2>{note}<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f'<td class="n">{value:.5g}</td>'
    return f'<td class="n">{value}</td>' if isinstance(value, int) else f"<td>{escape(str(value))}</td>"


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


@cache
def _text(name: str) -> str:
    return (files("egnn_md.report") / name).read_text(encoding="utf-8")


@cache
def _viewer_code() -> str:
    return base64.b64encode((files("egnn_md.report") / "3Dmol-min.js.gz").read_bytes()).decode()


_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="color-scheme" content="light dark"><title>{title}</title><style>{css}</style></head><body>
"""
_END = "\n</body></html>\n"
_VIEWER = """<div id="scene"><div id="view"></div><div class="controls">
<span id="moving" style="display:contents"><button id="play">▶ play</button>
<input id="slider" type="range" min="0" max="0" value="0" aria-label="frame"></span>
<span id="colours"><select id="colour" aria-label="colour"><option value="element">elements</option>
<option value="extrapolation">extrapolation</option></select>
<span id="ramp" class="dim" hidden>0 <span class="ramp"></span> 2</span></span>
<button id="again" title="all of it, from the front">⟲</button><span id="label" class="dim"></span></div></div>"""

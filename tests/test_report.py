"""Reports: whole, self-contained, and in a real browser the molecule turns and plays."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import molecule

from egnn_md.models.potential import Potential
from egnn_md.report import charts
from egnn_md.report.page import Page, Table
from egnn_md.report.scene import Scene, atom_signals, thinned

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run"),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--virtual-time-budget=15000"),
)
PROBE = """<script>
window.problems = [];
window.addEventListener("error", (event) => window.problems.push(String(event.message)));
const asked = [];
const note = (list) => asked.push(...list.getEntries().map((entry) => entry.name));
new PerformanceObserver(note).observe({type: "resource"});
const pixels = () => report.viewer.pngURI();
async function look() {
  while (!document.body.dataset.ready) await new Promise((done) => setTimeout(done, 20));
  const first = pixels();
  report.viewer.rotate(60, "y"); report.viewer.render();
  const turned = pixels();
  report.viewer.rotate(-60, "y"); report.viewer.render();
  report.show(report.data.frames.length - 1);
  const moved = pixels();
  const box = document.getElementById("colour");
  box.value = "extrapolation"; box.dispatchEvent(new Event("change"));
  const coloured = pixels();
  const seen = new Set();
  report.play(true);
  for (let k = 0; k < 20; k++) { seen.add(report.frame); await new Promise((done) => setTimeout(done, 20)); }
  report.play(false);
  const found = {ready: document.body.dataset.ready, problems, asked, turns: first !== turned, moves: first !== moved,
    colours: moved !== coloured, plays: seen.size > 1, empty: first.length < 500,
    width: window.innerWidth, wide: document.documentElement.scrollWidth - window.innerWidth};
  const told = document.createElement("pre"); told.className = "found"; told.textContent = JSON.stringify(found);
  told.dataset.width = window.innerWidth;
  parent.document.body.appendChild(told);
}
look().catch((problem) => window.problems.push(String(problem)));
</script>"""


def opened(page: str, widths: list[int], folder: Path) -> dict[int, dict[str, Any]]:
    """What the probe finds when a browser opens the page in frames of these widths (no window is as narrow as a
    telephone), by width.
    """
    probed = escape(page.replace("<body>", f"<body>{PROBE}", 1))
    outer = folder / "frames.html"
    outer.write_text("".join(f'<iframe width="{w}" height="900" srcdoc="{probed}"></iframe>' for w in widths))
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={folder / 'profile'}", "--window-size=1800,1000", "--dump-dom"]
    done = subprocess.run([*command, outer.as_uri()], capture_output=True, text=True, timeout=300)
    found = re.findall(r'<pre class="found" data-width="(\d+)">(.*?)</pre>', done.stdout)
    return {int(width): json.loads(unescape(text)) for width, text in found}


def moving() -> Page:
    frames = []
    for k in range(5):
        atoms = molecule("CH3CH2OH")
        atoms.positions[8] += 0.2 * k
        frames.append(atoms)
    time = np.linspace(0.0, 1.0, 50)
    signals = [[0.5 * k] * 9 for k in range(5)]
    scene = Scene(frames, [f"frame {k}" for k in range(5)], [0.25 * k for k in range(5)], signals)
    parts = [
        charts.lines("Energy", time, {"a": np.sin(9 * time), "b": np.cos(9 * time)}, "time / ps", "eV", 0.5),
        charts.histogram("Values", time, "eV"),
        charts.parity("Forces", time, time + 0.1, "eV/Å"),
    ]
    tables = [Table("Things <&>", ["name", "number"], [["</script>", 1.5]])]
    return Page("A <page>", "of a test", [("temperature", "300 K")], ["temperature"], scene, parts, tables, ["note"])


@pytest.mark.skipif(BROWSER is None, reason="there is no browser here")
def test_in_a_browser_the_molecule_turns_and_plays(tmp_path: Path) -> None:
    found = opened(moving().html(), [1280, 390], tmp_path)
    assert found.keys() == {1280, 390}
    for seen in found.values():
        assert seen["ready"] == "yes"
        assert seen["problems"] == []
        assert seen["asked"] == []  # nothing was fetched
        assert seen["turns"]
        assert seen["moves"]
        assert seen["colours"]
        assert seen["plays"]
        assert not seen["empty"]
        assert seen["wide"] <= 0  # nothing to scroll to the right


def test_page_is_one_file_that_asks_for_nothing() -> None:
    text = moving().html()
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:)""", text)
    assert "default-src 'none'" in text
    assert text.count("</script>") == text.count("<script")  # none of the content can end one early
    assert "A &lt;page&gt;" in text
    assert "&lt;/script&gt;" in text
    (data,) = re.findall(r'id="data">(.*?)</script>', text)
    frames = json.loads(data)["frames"]
    assert len(frames) == 5
    assert frames[0]["s"] == list("CCOHHHHHH")
    assert "s" not in frames[1]  # the same atoms: said once
    first = np.reshape(frames[0]["x"], (9, 3))
    expected = moving().scene.frames[0].positions  # type: ignore[union-attr]
    assert first == pytest.approx(expected - expected.mean(0), abs=1e-3)


def test_page_without_a_molecule_has_no_viewer() -> None:
    text = Page("Nothing to turn", charts=[charts.histogram("x", np.arange(9.0), "eV")]).html()
    assert "viewer-code" not in text.partition("<body>")[2].replace("getElementById", "")
    assert "<svg" in text


def test_page_replaces_the_old_one_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    broken = Page("x", scene=Scene([molecule("H2O")], times=[float("nan")]))
    with pytest.raises(ValueError, match="JSON"):
        broken.write(path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    moving().write(path)
    assert path.read_text().startswith("<!DOCTYPE html>")


def test_lines_leave_out_what_is_not_finite_and_may_be_flat() -> None:
    x = np.arange(5.0)
    drawn = charts.lines("a", x, {"y": np.array([1.0, np.nan, np.inf, 2.0, 3.0])}, "x", "y")
    (points,) = re.findall(r'points="(.*?)"', drawn)
    assert len(points.split()) == 3
    assert "nan" not in drawn
    assert "<polyline" in charts.lines("flat", x, {"y": np.full(5, 7.0)}, "x", "y")
    assert charts.lines("nothing", x, {"y": np.full(5, np.nan)}, "x", "y") == ""
    assert charts.lines("one point", x[:1], {"y": x[:1]}, "x", "y") == ""


def test_long_lines_and_clouds_are_thinned() -> None:
    x = np.linspace(0, 1, 100_000)
    assert len(charts.lines("long", x, {"y": x}, "x", "y")) < 60_000
    assert charts.parity("many", x, x, "eV").count("<circle") == charts.MAX_DOTS


def test_parity_says_the_error() -> None:
    reference = np.array([[1.0, 2.0], [3.0, np.nan]])
    assert "mean absolute error 0.5 eV; 3 values" in charts.parity("p", reference, reference + 0.5, "eV")


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3e-7, 2e-7), (-1234.567, -1234.561), (5.0, 5e9)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = charts._ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert all(low - 1e-9 * abs(low) <= value <= high * (1 + 1e-9) + 1e-12 for value, _ in ticks)
    assert len({text for _, text in ticks}) == len(ticks)  # no two read alike


def test_frames_are_thinned_to_what_a_page_holds() -> None:
    assert thinned(5, 10) == [0, 1, 2, 3, 4]
    assert thinned(0, 10) == []
    many = thinned(10_000, 10)
    assert (many[0], many[-1], len(many)) == (0, 9_999, 300)
    assert len(thinned(10_000, 100_000)) == 2


def test_signals_of_the_atoms_are_the_models(random_potential: Callable[..., Potential]) -> None:
    from egnn_md.neighbors import GraphBuilder

    potential = random_potential()
    frames = [molecule("CH4") for _ in range(3)]
    frames[1].positions[0] += 0.3
    build = GraphBuilder(potential.config.cutoff)
    graphs = [build(a.positions, a.numbers, a.cell.array, a.pbc).to(dtype=potential.dtype) for a in frames]
    expected = [potential(graph).extrapolation.numpy(force=True) for graph in graphs]
    assert np.array(atom_signals(potential, frames)) == pytest.approx(np.array(expected), rel=1e-5, nan_ok=True)
    hurried = atom_signals(potential, frames, seconds=0.0)  # time for one: the others take over its signal
    assert np.array(hurried) == pytest.approx(np.array([expected[0]] * 3), rel=1e-5, nan_ok=True)


def test_bonds_that_came_and_went_are_named() -> None:
    from egnn_md.report.runs import bond_table

    start, end = molecule("CH3OH"), molecule("CH3OH")
    oxygen, hydrogen = 1, 3  # the hydroxyl's
    end.positions[hydrogen] += 3.0 * (end.positions[hydrogen] - end.positions[oxygen])
    rows = dict(map(tuple, bond_table([start, end]).rows))
    assert rows["at the start"] == 5
    assert rows["broken"] == "O1–H3"
    assert rows["formed"] == "none"
    periodic = start.copy()
    periodic.set_cell([9, 9, 9])
    periodic.pbc = True
    periodic.positions[:, 0] -= periodic.positions[0, 0]  # through the wall of the cell
    periodic.wrap()
    assert dict(map(tuple, bond_table([start, periodic]).rows))["broken"] == "none"


def test_a_relaxation_is_remembered_evenly_however_long_it_is() -> None:
    from egnn_md.report import relaxations

    way = relaxations.Way(molecule("H2O"))
    for step in range(3000):
        way.note(step, -1.0 * step, 1.0)
    assert len(way.steps) <= relaxations.MOST_STEPS
    gaps = np.diff(way.steps)
    assert gaps.min() == gaps.max() == way.every
    assert way.energies == [-1.0 * step for step in way.steps]
    assert len(way.frames) == len(way.steps)


def test_view_takes_atoms_files_and_names(tmp_path: Path) -> None:
    import ase.io

    import egnn_md

    path = tmp_path / "two.extxyz"
    ase.io.write(path, [molecule("H2O"), molecule("CH4")])
    assert len(egnn_md.view(path).scene.frames) == 2  # type: ignore[union-attr]
    assert egnn_md.view("CH3OH").title == "CH3OH"
    assert egnn_md.view(molecule("CH4")).title == "CH4"
    shown = egnn_md.view([molecule("H2O")] * 3)
    assert shown.scene is not None
    assert shown.scene.to_dict()["moving"]  # the same atoms: a trajectory
    assert shown._repr_html_().startswith("<iframe srcdoc=")
    with pytest.raises(ValueError, match="no such file"):
        egnn_md.view("nowhere.xyz")

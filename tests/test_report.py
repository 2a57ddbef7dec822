"""Reports: whole, self-contained, and in a real browser the molecule turns and plays."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import browser
import numpy as np
import pytest
import torch
from ase.build import molecule

from egnn_md.checkpoint import save
from egnn_md.models.potential import Potential
from egnn_md.models.propagator import IntegratorConfig, IntegratorPropagator
from egnn_md.report import charts
from egnn_md.report.page import Page, Table
from egnn_md.report.scene import Scene, atom_signals, thinned

Call = Callable[..., tuple[int, str, list[str]]]
PROBE = """(async () => {
  const pixels = () => report.viewer.pngURI();
  for (let k = 0; k < 500 && !document.body.dataset.ready; k++) await new Promise((done) => setTimeout(done, 20));
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
  for (let k = 0; k < 150 && seen.size < 2; k++) {
    seen.add(report.frame);
    await new Promise((done) => setTimeout(done, 20));
  }
  report.play(false);
  return {ready: document.body.dataset.ready, turns: first !== turned, moves: first !== moved,
    colours: moved !== coloured, plays: seen.size > 1, empty: first.length < 500};
})()"""


def opened(pages: dict[str, str], folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """What the probe finds when a browser opens the pages, by name and width, and what is wrong with any page."""
    files = {name: folder / f"{name}-opened.html" for name in pages}
    found = {}
    with browser.Browser() as window:
        for name, path in files.items():
            path.write_text(pages[name])
            for width in browser.WIDTHS:
                window.resize(width)
                window.open(path.as_uri(), seconds=300.0)
                found[name, width] = window.evaluate(PROBE, seconds=300.0)
        wrong = browser.look(window, list(files.values()), seconds=300.0)
    assert wrong == {}  # script errors, anything fetched, wider than the window, hard to read
    return found


def check_seen(seen: dict[str, Any], *, coloured: bool) -> None:
    """What every report must do in a browser."""
    assert seen["ready"] == "yes"
    assert seen["turns"]
    assert seen["moves"]
    assert seen["colours"] == coloured
    assert seen["plays"]
    assert not seen["empty"]


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


@pytest.mark.skipif(browser.CHROMIUM is None, reason="there is no browser here")
def test_in_a_browser_the_molecule_turns_and_plays(tmp_path: Path) -> None:
    found = opened({"moving": moving().html()}, tmp_path)
    assert found.keys() == {("moving", 1280), ("moving", 390)}
    for seen in found.values():
        check_seen(seen, coloured=True)


@pytest.fixture
def left(call: Call, checkpoint_file: Path, tmp_path: Path) -> dict[str, str]:
    """The reports that verbs leave of particles and of files of many structures."""
    frames = [molecule(name) for name in ("CH4", "CH3OH", "H2O", "SH2")]
    for k, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=k)
    ase.io.write("many.extxyz", frames)
    torch.manual_seed(0)
    save(IntegratorPropagator(IntegratorConfig(1.0, hidden_dim=4, substep=0.02)), tmp_path / "p.safetensors")
    sizes = ("--particles", 3, "--train", 0, "--valid", 0, "--test", 2, "--rollout", 3, "--seed", 1)
    words: list[tuple[object, ...]] = [
        ("data", "nbody", *sizes, "-o", "n.npz"),
        ("rollout", "p.safetensors", "n.npz", "--frames", 4, "-o", "particles"),
        ("relax", "many.extxyz", "--model", checkpoint_file, "--steps", 3, "-o", "relaxed.extxyz"),
        ("md", "many.extxyz", "--model", checkpoint_file, "--steps", 8, "--interval", 2, "--timestep", 0.1, "-o", "md"),
    ]
    for command in words:
        code, _, err = call(*command)
        assert code == 0, err
    pages = {"particles": "particles/report.html", "relax": "relaxed-report.html", "md": "md/report.html"}
    return {name: Path(path).read_text() for name, path in pages.items()}


@pytest.mark.filterwarnings("ignore::egnn_md.predict.ExtrapolationWarning")
def test_reports_of_particles_and_of_many_structures(left: dict[str, str], tmp_path: Path) -> None:
    import egnn_md

    data = {name: json.loads(re.findall(r'id="data">(.*?)</script>', page)[0]) for name, page in left.items()}
    assert [len(data[name]["frames"]) for name in ("particles", "relax", "md")] == [5, 3, 5]
    assert all("g" in frame for frame in data["particles"]["frames"])  # the truth beside the prediction
    assert len(data["particles"]["colours"]) == 3
    assert "SH2" not in left["relax"].partition("<table>")[0]
    assert re.search(r"<td>failed</td>.*\bS\b", left["relax"])  # why one has no result
    assert left["md"].count("<svg") >= 3
    again = egnn_md.view(tmp_path / "particles")
    assert again.html() == left["particles"]
    if browser.CHROMIUM is not None:
        found = opened(left, tmp_path)
        assert found.keys() == {(name, width) for name in left for width in (1280, 390)}
        for seen in found.values():
            check_seen(seen, coloured=False)


@pytest.mark.filterwarnings("ignore::egnn_md.predict.ExtrapolationWarning")
def test_a_run_tells_temperatures_of_motions_and_a_spectrum_where_frames_are_dense(
    call: Call, checkpoint_file: Path
) -> None:
    shared = ("--model", checkpoint_file, "--timestep", 0.1, "--temperature", 50, "--seed", 1, "-o", "run")
    for steps, interval, kind, dense in ((300, 1, "extxyz", True), (300, 1, "xtc", False), (60, 50, "traj", False)):
        named = ("--interval", interval, "--format", kind, "--overwrite")
        code, _, err = call("md", "CH4", *shared, "--steps", steps, *named)
        assert code == 0, err
        page = Path("run/report.html").read_text()
        assert "Bonds that turn" not in page
        assert ("Spectrum of the velocities" in page) == ("Velocity autocorrelation" in page) == dense
        assert ("A spectrum of vibrations needs" in page) != dense
        assert ("Temperatures of motions and elements" in page) == dense
    assert "these are 5 fs apart, in traj" in page


def test_a_run_tells_how_often_bonds_turn(call: Call) -> None:
    words = ("rollout", "ethanol-flow", "CH3CH2OH", "--seed", 1, "--interval", 1, "-o", "run", "--overwrite")
    for steps, kind, told in ((300, "xtc", True), (300, "extxyz", True), (60, "xtc", False)):
        code, _, err = call(*words, "--steps", steps, "--format", kind)
        assert code == 0, err
        page = Path("run/report.html").read_text()
        assert ("Bonds that turn" in page) == told
        assert ("C1-C2-O3-H4" in page) == told


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
    turn = np.linalg.lstsq(expected - expected.mean(0), first, rcond=None)[0]
    assert turn @ turn.T == pytest.approx(np.eye(3), abs=1e-3)
    assert np.linalg.det(turn) == pytest.approx(1.0, abs=1e-3)  # the molecule, not its mirror image
    assert (np.diff(first.std(0)) < 0).all()  # longest from left to right, its flat side to the front
    step = np.reshape(frames[1]["x"], (9, 3)) - first
    assert step - step[0] == pytest.approx((0.2 * np.eye(9)[8][:, None]) @ turn.sum(0)[None], abs=2e-3)  # turned alike


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
    from egnn_md.dynamics.bond_changes import bond_changes
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
    assert str(bond_changes(start, start)) == "none"
    assert str(bond_changes(start, end)) == "O1–H3 broken"
    assert str(bond_changes(end, start)) == "O1–H3 formed"


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

"""Do relaxed torsion scans agree with GFN2-xTB's? Forty conjugated and other rotatable bonds. Needs rdkit and tblite.

One dihedral is held at each angle from 0 to 180 degrees, all else relaxed from a force field's geometry, by the model
and by GFN2-xTB. Compared are the highest point of each scan above its lowest, and the mean absolute
difference along it. A picture shows all scans.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from _common import calculator, gfn2, make_parser, parse, print_table, write_json
from numpy.typing import NDArray

from egnn_md.chemistry.units import KJ_PER_MOL_PER_EV

if TYPE_CHECKING:
    from ase import Atoms

FloatArray = NDArray[np.float64]
KCAL_PER_EV: Final = KJ_PER_MOL_PER_EV / 4.184
BONDS: Final = {
    "N-methylacetamide C-N": "[CH3:1][C:2](=O)[NH:3][CH3:4]",
    "formamide C-N": "[O:1]=[CH:2][N:3]([H:4])[H]",
    "formic acid C-O": "[O:1]=[CH:2][O:3][H:4]",
    "methyl acetate C-O": "[O:1]=[C:2](C)[O:3][CH3:4]",
    "phenol C-O": "c1cc[cH:1][c:2](c1)[O:3][H:4]",
    "biphenyl C-C": "c1cc[cH:1][c:2](c1)-[c:3]2[cH:4]cccc2",
    "hydrogen peroxide O-O": "[H:1][O:2][O:3][H:4]",
    "acetic acid C-O": "[O:1]=[C:2](C)[O:3][H:4]",
    "acetamide C-N": "[O:1]=[C:2](C)[N:3]([H:4])[H]",
    "methyl carbamate C-N": "[O:1]=[C:2](OC)[N:3]([H:4])[H]",
    "dimethyl carbonate C-O": "[O:1]=[C:2](OC)[O:3][CH3:4]",
    "urea C-N": "[O:1]=[C:2](N)[N:3]([H:4])[H]",
    "N-methylurea C-N": "[O:1]=[C:2](N)[NH:3][CH3:4]",
    "thioacetamide C-N": "[S:1]=[C:2](C)[N:3]([H:4])[H]",
    "methanesulfonamide S-N": "[CH3:1][S:2](=O)(=O)[N:3]([H:4])[H]",
    "N-methylmethanesulfonamide S-N": "[CH3:1][S:2](=O)(=O)[NH:3][CH3:4]",
    "benzenesulfonamide C-S": "c1cc[cH:1][c:2](c1)[S:3](=O)(=O)[NH2:4]",
    "anisole C-O": "c1cc[cH:1][c:2](c1)[O:3][CH3:4]",
    "aniline C-N": "c1cc[cH:1][c:2](c1)[N:3]([H:4])[H]",
    "N-methylaniline C-N": "c1cc[cH:1][c:2](c1)[NH:3][CH3:4]",
    "acetanilide C-N": "[O:1]=[C:2](C)[NH:3][c:4]1ccccc1",
    "acetanilide N-aryl": "c1cc[cH:1][c:2](c1)[NH:3][C:4](=O)C",
    "benzaldehyde C-C": "c1cc[cH:1][c:2](c1)[CH:3]=[O:4]",
    "benzamide C-C": "c1cc[cH:1][c:2](c1)[C:3](N)=[O:4]",
    "styrene C-C": "c1cc[cH:1][c:2](c1)[CH:3]=[CH2:4]",
    "thioanisole C-S": "c1cc[cH:1][c:2](c1)[S:3][CH3:4]",
    "nitrobenzene C-N": "c1cc[cH:1][c:2](c1)[N+:3](=O)[O-:4]",
    "2-phenylpyridine C-C": "n1ccc[cH:1][c:2]1-[c:3]2[cH:4]cccc2",
    "2,2'-bithiophene C-C": "c1c[cH:1][c:2](s1)-[c:3]2[cH:4]ccs2",
    "butadiene C-C": "[CH2:1]=[CH:2][CH:3]=[CH2:4]",
    "acrolein C-C": "[CH2:1]=[CH:2][CH:3]=[O:4]",
    "glyoxal C-C": "[O:1]=[CH:2][CH:3]=[O:4]",
    "acetone oxime N-O": "C[C:1](C)=[N:2][O:3][H:4]",
    "dimethyl disulfide S-S": "[CH3:1][S:2][S:3][CH3:4]",
    "dimethyl peroxide O-O": "[CH3:1][O:2][O:3][CH3:4]",
    "hydrazine N-N": "[H:1][N:2]([H])[N:3]([H:4])[H]",
    "butane C-C": "[CH3:1][CH2:2][CH2:3][CH3:4]",
    "1,2-dichloroethane C-C": "[Cl:1][CH2:2][CH2:3][Cl:4]",
    "ethylene glycol C-C": "[OH:1][CH2:2][CH2:3][OH:4]",
    "trimethyl phosphate P-O": "[O:1]=[P:2](OC)(OC)[O:3][CH3:4]",
}
"""Name: SMILES; atoms 1 to 4 are the dihedral."""


@lru_cache(maxsize=1)
def start(smiles: str) -> tuple[Any, tuple[int, ...]]:
    """rdkit's molecule in a force field's geometry, and its dihedral."""
    from rdkit import Chem
    from rdkit.Chem import AllChem

    parameters = Chem.SmilesParserParams()
    parameters.removeHs = False
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles, parameters))
    AllChem.EmbedMolecule(molecule, randomSeed=7)
    AllChem.MMFFOptimizeMolecule(molecule, maxIters=2000)
    numbered = {atom.GetAtomMapNum(): atom.GetIdx() for atom in molecule.GetAtoms()}
    return molecule, tuple(numbered[k] for k in (1, 2, 3, 4))


def turned(smiles: str, angle: float) -> tuple[Atoms, tuple[int, ...]]:
    """The force field's geometry with its dihedral at `angle`, degrees."""
    from ase import Atoms
    from rdkit.Chem import Mol, rdMolTransforms

    molecule, dihedral = start(smiles)
    conformer = Mol(molecule).GetConformer()
    rdMolTransforms.SetDihedralDeg(conformer, *dihedral, angle)
    return Atoms([atom.GetAtomicNum() for atom in molecule.GetAtoms()], conformer.GetPositions()), dihedral


def relaxed(atoms: Atoms, dihedral: tuple[int, ...], engine: Any, fmax: float, max_steps: int) -> tuple[Atoms, bool]:
    """A copy, relaxed but for its dihedral, and whether it converged."""
    from ase.constraints import FixInternals
    from ase.optimize import BFGS

    found = atoms.copy()
    found.calc = engine
    found.set_constraint(FixInternals(dihedrals_deg=[[found.get_dihedral(*dihedral), list(dihedral)]], epsilon=1e-6))
    converged = bool(BFGS(found, logfile=None).run(fmax=fmax, steps=max_steps))
    return found, converged


def scan(
    smiles: str, angles: FloatArray, engines: Sequence[Any], fmax: float, max_steps: int
) -> tuple[FloatArray, int]:
    """Energies (kcal/mol, each engine's lowest is 0) of each engine at each angle, and how many did not converge."""
    energies, unconverged = np.full((len(engines), len(angles)), np.nan), 0
    for column, angle in enumerate(angles):
        atoms, dihedral = turned(smiles, float(angle))
        for row, engine in enumerate(engines):
            found, converged = relaxed(atoms, dihedral, engine, fmax, max_steps)
            energies[row, column] = KCAL_PER_EV * found.get_potential_energy()
            unconverged += not converged
    return np.asarray(energies - energies.min(1, keepdims=True)), unconverged


def draw(scans: dict[str, FloatArray], angles: FloatArray, model: str, path: Path) -> None:
    """One panel a bond."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(8, len(scans))
    rows = -(-len(scans) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.3 * columns, 1.8 * rows), squeeze=False, sharex=True)
    for axis in axes.flat[len(scans) :]:
        axis.axis("off")
    for axis, (name, energies) in zip(axes.flat, scans.items(), strict=False):
        for values, label in zip(energies, (model, "GFN2-xTB"), strict=True):
            axis.plot(angles, values, "-" if label == model else "o", label=label, markersize=3)
        axis.set_title(name, fontsize=7)
        axis.set_xticks([0, 90, 180])
        axis.tick_params(labelsize=6)
    axes[0, 0].legend(fontsize=6)
    figure.supxlabel("dihedral, degrees")
    figure.supylabel("energy, kcal/mol")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = make_parser(__doc__ or "", data=False, model="egnn-xtb")
    parser.add_argument("--bonds", nargs="*", metavar="WORD", help="only those whose name has one of these in it")
    parser.add_argument("--step", type=float, default=15.0, help="degrees")
    parser.add_argument("--fmax", type=float, default=0.02, help="eV/Å")
    parser.add_argument("--max-steps", type=int, default=150, help="of a relaxation")
    parser.add_argument("-o", "--output", type=Path, default=Path("torsions.png"), help="the picture")
    options = parse(parser, arguments)
    wanted = [name for name in BONDS if not options.bonds or any(word in name for word in options.bonds)]
    if not wanted:
        parser.error(f"no bond has {' or '.join(options.bonds)} in its name: {', '.join(BONDS)}")
    if not 0.0 < options.step <= 180.0:
        parser.error("--step must be between 0 and 180 degrees")
    angles = np.arange(0.0, 180.0 + 1e-9, options.step)
    engines, scans, rows = (calculator(options.model, "float64"), gfn2(accuracy=0.5)), {}, []
    for number, name in enumerate(wanted):
        print(f"{number + 1}/{len(wanted)} {name}", flush=True)
        scans[name], unconverged = scan(BONDS[name], angles, engines, options.fmax, options.max_steps)
        ours, teacher = scans[name]
        rows.append((name, float(ours.max()), float(teacher.max()), float(np.abs(ours - teacher).mean()), unconverged))
    print_table(
        "Relaxed scans, kcal/mol", ("bond", "highest", "GFN2-xTB's", "mean abs. difference", "not converged"), rows
    )
    draw(scans, angles, options.model, options.output)
    highest = float(np.mean([abs(row[1] - row[2]) for row in rows]))
    along = float(np.mean([row[3] for row in rows]))
    print(f"\nmean: highest points differ by {highest:.2f}, scans by {along:.2f} kcal/mol; picture: {options.output}")
    result = {"highest": highest, "along": along, "bonds": {name: list(row) for name, *row in rows}}
    write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()

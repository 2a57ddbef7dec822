"""A potential as a metatomic file: TorchScript, which engines with a metatomic interface run without us.

`pip install 'egnn-md[metatomic]'`. The force call is traced, which holds for any number of atoms and pairs. Engines
take forces and stress from autograd of the energy: to that of its first atom each pair adds (r_ij - r_ij')·g_ij, with
r_ij the vector that the engine differentiates by, r_ij' the same numbers without history, and g_ij = ∂E/∂r_ij from the
force call: zero, with the right derivative.
"""

import warnings
from pathlib import Path
from typing import Dict, List, Optional

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import AtomisticModel, ModelCapabilities, ModelMetadata, ModelOutput, NeighborListOptions, System
from torch import Tensor

from egnn_md.models.potential import Potential


def export(model: Potential, file: Path, *, name: str, description: str = "") -> None:
    """Write `file` (.pt) with the energy of each atom, in eV, as "energy"; its precision is the model's.

    Whoever loads such a file runs the code in it. Elements that the model does not know are refused by metatomic.
    Raises ValueError for models with charges, which act beyond any neighbour list.
    """
    config = model.config
    if config.long_range:
        raise ValueError(
            f"{name} has charges that act at any distance: metatomic's neighbour lists do not reach so far"
        )
    vectors = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]], dtype=model.dtype)
    example = (vectors, torch.zeros(3, dtype=torch.int64), torch.tensor([[0, 0], [1, 2]]))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constants, which are meant, and of TorchScript as such
        call = torch.jit.trace(_ForceCall(model), example, check_trace=False)  # type: ignore[no-untyped-call]
        exported = _Exported(call, torch.tensor(config.elements), config.cutoff).eval()
        capabilities = ModelCapabilities(
            outputs={"energy": ModelOutput(unit="eV", sample_kind="atom")},
            atomic_types=list(config.elements),
            interaction_range=config.n_layers * config.cutoff,
            length_unit="angstrom",
            supported_devices=["cpu"],
            dtype=str(model.dtype).removeprefix("torch."),
        )
        metadata = ModelMetadata(name=name, description=description)
        AtomisticModel(exported, metadata, capabilities).save(str(file))


class _ForceCall(torch.nn.Module):
    """`Potential.force_call` without its features, to be traced."""

    def __init__(self, model: Potential) -> None:
        super().__init__()
        self.model = model

    def forward(self, vectors: Tensor, species: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        energies, gradient, *_ = self.model.force_call(vectors, species, pairs)
        return energies, gradient


class _Exported(torch.nn.Module):
    """What metatomic calls: systems with neighbour lists -> "energy". `forward` is TorchScript."""

    def __init__(self, call: torch.nn.Module, elements: Tensor, cutoff: float) -> None:
        super().__init__()
        self.call = call
        self.table: Tensor
        table = torch.zeros(256, dtype=torch.int64)
        table[elements] = torch.arange(len(elements))
        self.register_buffer("table", table)
        self.neighbors = NeighborListOptions(cutoff=cutoff, full_list=False, strict=True)

    def requested_neighbor_lists(self) -> List[NeighborListOptions]:
        return [self.neighbors]

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels],
    ) -> Dict[str, TensorMap]:
        vectors: List[Tensor] = []
        atoms_of_pairs: List[Tensor] = []
        types: List[Tensor] = []
        atoms: List[Tensor] = []
        n_atoms = 0
        for k, system in enumerate(systems):
            found = system.get_neighbor_list(self.neighbors)
            vectors.append(found.values.squeeze(-1))
            atoms_of_pairs.append(found.samples.values[:, :2].to(torch.int64).T + n_atoms)
            types.append(system.types.to(torch.int64))
            index = torch.arange(len(system), device=system.types.device)
            atoms.append(torch.stack([torch.full_like(index, k), index], 1))
            n_atoms += len(system)
        # The gradient is that of all energies together: it cannot be shared out.
        assert selected_atoms is None or len(selected_atoms) == n_atoms, "all atoms at once: no domain decomposition"
        r, pairs, samples = torch.cat(vectors), torch.cat(atoms_of_pairs, 1), torch.cat(atoms)
        species = self.table.index_select(0, torch.cat(types))
        with torch.no_grad():
            energies, gradient = self.call(r.detach(), species, pairs)
        slopes = ((r - r.detach()) * gradient).sum(-1).to(energies.dtype)
        energies = energies.index_add(0, pairs[0], slopes)
        labels = Labels(["system", "atom"], samples.to(torch.int32))
        if "energy" in outputs and outputs["energy"].sample_kind != "atom":
            totals = torch.zeros(len(systems), dtype=energies.dtype, device=r.device)
            energies = totals.index_add(0, samples[:, 0], energies)
            labels = Labels(["system"], torch.arange(len(systems), device=r.device).to(torch.int32).unsqueeze(1))
        zero = torch.zeros(1, 1, dtype=torch.int32, device=r.device)
        no_components: List[Labels] = []
        block = TensorBlock(energies.to(r.dtype).unsqueeze(1), labels, no_components, Labels(["energy"], zero))
        results: Dict[str, TensorMap] = {}
        if "energy" in outputs:
            results["energy"] = TensorMap(Labels(["_"], zero), [block])
        return results

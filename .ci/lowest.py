"""Print pip constraints: the lowest version of each dependency that pyproject.toml names."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

LEFT_OUT = {"egnn-md", "setuptools", "mypy", "ruff"}


def main() -> None:
    """One line a package: numpy==1.26."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for line in (*project["dependencies"], *extras["train"], *extras["hdf5"], *extras["openmm"], *extras["test"]):
        name, floor = re.match(r"([\w-]+)(?:\[[^]]*\])?(?:>=([\w.]+))?", line).groups()  # type: ignore[union-attr]
        if name not in LEFT_OUT and floor:
            print(f"{name}=={floor}")


if __name__ == "__main__":
    main()

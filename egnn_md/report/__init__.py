"""Reports to look at: self-contained pages with a molecule that turns and plays. Importing this loads nothing else."""

"""Who is near whom: neighbour lists, and the graphs made of them."""

from egnn_md.neighbors.graphs import GraphBuilder, molecules_graph
from egnn_md.neighbors.lists import VerletList, neighbor_list

__all__ = ["GraphBuilder", "VerletList", "molecules_graph", "neighbor_list"]

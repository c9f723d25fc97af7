from ._bound import Bound as Bound
from ._cell_cost import CellCost as CellCost, break_even as break_even, cell_cost as cell_cost
from ._collectives import CollectiveCost as CollectiveCost
from ._hardware import HARDWARE as HARDWARE, Hardware as Hardware
from ._memory import Memory as Memory
from ._meshes import (
    all_meshes as all_meshes,
    larger_mesh as larger_mesh,
    smaller_mesh as smaller_mesh,
)
from ._planner import (
    InfeasibleMesh as InfeasibleMesh,
    Plan as Plan,
    Planner as Planner,
)
from ._report import Report as Report
from ._search import Search as Search, rank_meshes as rank_meshes
from ._topology import Topology as Topology
from ._units import in_bytes as in_bytes, in_seconds as in_seconds

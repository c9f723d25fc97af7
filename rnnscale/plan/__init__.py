"""Memory, collectives and least time of a train step on devices that this machine does not have."""

from rnnscale.plan._bound import Bound as Bound
from rnnscale.plan._collectives import CollectiveCost as CollectiveCost
from rnnscale.plan._hardware import HARDWARE as HARDWARE, Hardware as Hardware
from rnnscale.plan._memory import Memory as Memory
from rnnscale.plan._meshes import (
    all_meshes as all_meshes,
    larger_mesh as larger_mesh,
    smaller_mesh as smaller_mesh,
)
from rnnscale.plan._planner import (
    InfeasibleMesh as InfeasibleMesh,
    Plan as Plan,
    Planner as Planner,
)
from rnnscale.plan._report import Report as Report
from rnnscale.plan._search import Search as Search, rank_meshes as rank_meshes
from rnnscale.plan._topology import Topology as Topology

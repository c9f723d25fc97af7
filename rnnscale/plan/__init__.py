"""What a train step needs on devices that are not here: compiled for them, and estimated."""

from rnnscale.plan._bound import Bound as Bound
from rnnscale.plan._hardware import HARDWARE as HARDWARE, Hardware as Hardware
from rnnscale.plan._memory import Memory as Memory
from rnnscale.plan._meshes import larger as larger, meshes as meshes, smaller as smaller
from rnnscale.plan._plan import Plan as Plan, Planner as Planner, Unfit as Unfit
from rnnscale.plan._report import Report as Report
from rnnscale.plan._search import Search as Search, ranking as ranking
from rnnscale.plan._target import Target as Target
from rnnscale.plan._traffic import Exchange as Exchange

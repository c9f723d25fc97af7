"""Models over a mesh of devices: axes, layouts, and the recurrences on them."""

from rnnscale.sharding._describe import Layout as Layout
from rnnscale.sharding._describe import describe as describe
from rnnscale.sharding._describe import layouts as layouts
from rnnscale.sharding._init import sharded_init as sharded_init
from rnnscale.sharding._mesh import AXES as AXES
from rnnscale.sharding._mesh import make_mesh as make_mesh
from rnnscale.sharding._ops import diagonal_ssm as diagonal_ssm
from rnnscale.sharding._ops import linear_scan as linear_scan
from rnnscale.sharding._rules import ACTIVATION_AXES as ACTIVATION_AXES
from rnnscale.sharding._rules import PARAMETER_AXES as PARAMETER_AXES
from rnnscale.sharding._rules import automatic_axes as automatic_axes
from rnnscale.sharding._rules import batch_sharding as batch_sharding
from rnnscale.sharding._rules import constrain as constrain
from rnnscale.sharding._rules import parameter_spec as parameter_spec
from rnnscale.sharding._rules import shardings as shardings

from ._dynamics import (
    LayerWithInputs as LayerWithInputs,
    dynamics_panels as dynamics_panels,
    parallel_tables as parallel_tables,
    recurrent_layers as recurrent_layers,
)
from ._eigenvalues import (
    continuous_eigenvalues as continuous_eigenvalues,
    eigenvalues as eigenvalues,
    timescales as timescales,
)
from ._gradient_norms import (
    gradient_norms as gradient_norms,
    state_gradient_norms as state_gradient_norms,
)
from ._lyapunov import lyapunov_spectrum as lyapunov_spectrum
from ._parallelisable import (
    Parallelisable as Parallelisable,
    ParallelMethod as ParallelMethod,
    parallelisable as parallelisable,
)
from ._plots import (
    plot_eigenvalues as plot_eigenvalues,
    plot_gradient_norms as plot_gradient_norms,
    plot_lyapunov as plot_lyapunov,
    plot_timescales as plot_timescales,
)
from ._recurrent_matrix import recurrent_matrix as recurrent_matrix
from ._report import (
    Panel as Panel,
    Report as Report,
    Table as Table,
    figure_class as figure_class,
)

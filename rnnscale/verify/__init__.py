"""Laws, invariants and oracles that check cells and layers against their papers, on any machine.

Every check returns a `Check` or several. `SUITES` has the checks of every class, which
`rnnscale verify` prints and the test suite runs.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

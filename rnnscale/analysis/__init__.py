"""What a recurrent layer does over time: eigenvalues, time scales, gradients against lag, Lyapunov
exponents, plots of them, and the report of a run that `rnnscale inspect` writes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

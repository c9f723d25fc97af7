"""Parts of a training loop: state, step, losses, optimiser, checkpoints, and `fit` with
its callbacks. No part knows a task or a model by name."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

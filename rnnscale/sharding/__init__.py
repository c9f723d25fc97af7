"""Models over a mesh of devices: its axes, the layout of parameters and activations, sequence
parallelism."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

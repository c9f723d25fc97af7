"""Recurrent networks over time, and position-wise layers: annotated, so that they shard, and the
same for any leading axes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

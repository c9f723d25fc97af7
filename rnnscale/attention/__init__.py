"""Attention whose state has a fixed size: linear attention with and without decay and erasure."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

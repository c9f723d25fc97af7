"""Blocks around a sequence layer, stacks of blocks, and models with a stack inside."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

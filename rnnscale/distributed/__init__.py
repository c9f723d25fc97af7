"""Many processes that run one program: connecting, collectives on the host, stop signals, and a
watchdog for processes that hang."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""The Triton kernels of the recurrence on the CPU, in Triton's own interpreter."""

# pyright: reportMissingImports=false
import threading
from functools import cache, partial
from importlib.machinery import SourceFileLoader
from types import ModuleType

import jax
import numpy as np
import triton.language as tl
from triton import knobs
from triton.runtime.interpreter import GridExecutor, InterpretedFunction

from . import _triton_source

# The interpreter patches Triton's language and keeps the place in the grid in a global.
_ALONE = threading.Lock()


def run(kernel: str, arrays, scalars, shapes, programs: int, constants) -> list[jax.Array]:
    """The results of the kernel for `arrays`, by a callback.

    Numbers of 16 bits are passed as float32. The kernels round their results only, which is done
    here, since the interpreter rounds to bfloat16 incorrectly.
    """

    def on_host(*arrays):
        inputs = [_widened(np.asarray(x)) for x in arrays]
        # What a kernel fails to write stays NaN.
        results = [np.full(s.shape, np.nan, np.float32) for s in shapes]
        with _ALONE, np.errstate(all="ignore"):
            names = getattr(_triton_source, kernel).arg_names
            function = getattr(_interpreted_source(), kernel)
            execute = _Executor(function, names, partial(_grid, programs))
            execute(*map(_Tensor, inputs), *scalars, *map(_Tensor, results), **constants)
            return [x.astype(s.dtype) for x, s in zip(results, shapes, strict=True)]

    return jax.pure_callback(on_host, shapes, *arrays)


class _Tensor:
    """The part of a tensor's interface that the interpreter uses, over a NumPy array."""

    def __init__(self, array: np.ndarray):
        self._array = array
        self.dtype = array.dtype
        self.shape = array.shape

    def data_ptr(self) -> int:
        return self._array.ctypes.data


class _Executor(GridExecutor):
    """An executor whose tensors are on the CPU already."""

    def _init_args_hst(self, args_dev, kwargs):
        return args_dev, kwargs

    def _restore_args_dev(self, args_dev, args_hst, kwargs, kwargs_hst):
        pass


def _index(tensor) -> int:
    return tensor.handle.data.item()


def _grid(programs: int, _) -> tuple[int]:
    # The interpreter calls this after it has patched the language, and undoes its patches at the
    # end. This one is needed since NumPy 2.4 rejects how Triton 3.6 turns a tensor into an `int`.
    tl.tensor.__index__ = _index  # pyright: ignore[reportAttributeAccessIssue]
    return (programs,)


def _widened(x: np.ndarray) -> np.ndarray:
    dtype = np.float32 if x.dtype != np.bool_ else np.bool_
    return np.ascontiguousarray(x, dtype)


@cache
def _interpreted_source() -> ModuleType:
    """A second copy of the module of kernels, whose functions the interpreter runs."""
    module = ModuleType(f"{_triton_source.__name__}_interpreted")
    with knobs.runtime.scope():
        knobs.runtime.interpret = True
        SourceFileLoader(module.__name__, _triton_source.__file__).exec_module(module)
    # Called as an `InterpretedFunction`, each would patch the language anew.
    for name, value in list(vars(module).items()):
        if isinstance(value, InterpretedFunction):
            setattr(module, name, value.rewrite())
    return module

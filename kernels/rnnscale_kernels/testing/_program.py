"""A compiled program, and what can be read back from it."""

import re
from functools import cached_property
from typing import Any

import jax
from jax.sharding import Mesh

from ._gpu_kernels import Kernel, triton_kernel
from ._hlo import HLO, Collective


class Program:
    """A compiled program, and what can be read back from it. Sizes are of one device.

    - `compiled`: the `jax.stages.Compiled`.
    - `text`: the program after all of XLA's passes.
    - `calls`: what it calls besides XLA's own code.
    - `kernels`: the GPU kernels written by hand that it contains, Mosaic's where they are given.
    """

    def __init__(
        self, compiled: jax.stages.Compiled, mesh: Mesh, mosaic_kernels: tuple[Kernel, ...] = ()
    ):
        self.compiled = compiled
        self.text: str = compiled.as_text() or ""
        self._hlo = HLO(self.text)
        self._mesh = mesh
        self.calls = tuple(call for call, _ in self._hlo.calls)
        payloads = re.findall(r'"triton_kernel_call_ffi".*\bopaque = "(.*?)"', self.text)
        self.kernels = mosaic_kernels + tuple(map(triton_kernel, payloads))

    @cached_property
    def collectives(self) -> tuple[Collective, ...]:
        """What its devices exchange with one another.

        One that is started here and waited for there counts once; one in a conditional counts as if
        its branch were taken.

        **Raises:** `ValueError` where the devices of a group are named in an unknown syntax.
        """
        return tuple(self._hlo.collectives(self._mesh.shape))

    @property
    def temporaries(self) -> int:
        """Bytes of all buffers besides arguments and results."""
        sizes: Any = self.compiled.memory_analysis()
        return sizes.temp_size_in_bytes

    def bytes_accessed(self) -> int:
        """Bytes that all operations read and write, by XLA's generic cost model.

        Every operation reads its operands from memory and writes its results there: caches are left
        out. The model knows neither the turns of a loop nor what a call does, so here a loop counts
        as often as it runs, and a call reads its operands and writes its results once.

        **Raises:** `ValueError` where the program does not say how often a loop runs.
        """
        return self._hlo.bytes_accessed()

"""A compiled program, and what can be read back from it."""

import math
import re
from functools import cached_property
from typing import Any

import jax
from jax.sharding import Mesh

from ._gpu_kernels import Kernel, triton_kernel
from ._hlo import HLO, Collective


class Program:
    """A compiled program, and what can be read back from it. Sizes are those on one device.

    - `compiled`: the `jax.stages.Compiled`.
    - `text`: the program after all passes of XLA.
    - `calls`: its calls of code that XLA has not generated.
    - `kernels`: the hand-written GPU kernels in it: Triton's, and those given as `mosaic_kernels`.

    `iterations` are the turns of a loop whose number of turns depends on the data; NaN if they are
    not known.
    """

    def __init__(
        self,
        compiled: jax.stages.Compiled,
        mesh: Mesh,
        mosaic_kernels: tuple[Kernel, ...] = (),
        iterations: float = math.nan,
    ):
        self.compiled = compiled
        self.text: str = compiled.as_text() or ""
        self._hlo = HLO(self.text, iterations)
        self._mesh = mesh
        self.calls = (*(call for call, _ in self._hlo.calls), *self._hlo.fused_calls)
        payloads = re.findall(r'"triton_kernel_call_ffi".*\bopaque = "(.*?)"', self.text)
        self.kernels = mosaic_kernels + tuple(map(triton_kernel, payloads))

    @cached_property
    def collectives(self) -> tuple[Collective, ...]:
        """Its collectives.

        An asynchronous collective, which has a start and an end, counts once. One in a conditional
        counts as if its branch were taken.

        **Raises:** `ValueError` if the devices of a group are named in an unknown syntax.
        """
        return tuple(self._hlo.collectives(self._mesh.shape))

    @property
    def temporaries(self) -> int:
        """Bytes of all buffers other than arguments and results."""
        sizes: Any = self.compiled.memory_analysis()
        return sizes.temp_size_in_bytes

    @property
    def launches(self) -> float:
        """How many operations run one after another, those of loops as often as they run. On a GPU
        most of them are kernels. NaN if the program does not say how often a loop runs."""
        return self._hlo.launches

    def bytes_accessed(self) -> int:
        """Bytes that all operations read and write, by XLA's generic cost model.

        The model has no caches: every operation reads its operands from memory and writes its
        results there. It knows neither how often a loop runs nor what a call does. Here a loop
        counts as often as it runs, and a call reads its operands and writes its results once.
        Arrays that a TPU keeps in its vector memory do not count.

        **Raises:** `ValueError` if the program does not say how often a loop runs.
        """
        return self._hlo.bytes_accessed()

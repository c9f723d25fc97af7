"""The recurrence on NVIDIA GPUs from Ampere on, in Triton by way of jax-triton.

The kernels are in `_triton_source`. Triton has neither complex numbers nor optional arguments: here
numbers become pairs of planes, and what is absent becomes a placeholder.
"""

import functools
from importlib import metadata, util
from typing import Any

import jax
import jax.numpy as jnp

from .._algebra import Planar, as_number
from .._sizes import round_up
from ._kernels import Kernels, Launch
from ._triton_config import ENOUGH, MAX_ROWS, Case, Config, choose_config, narrowest_block

_MIN_CHUNK = 512


class Triton(Kernels):
    """The kernels for NVIDIA GPUs of compute capability 8.0 and above."""

    dtypes = ("float32", "bfloat16", "float16")

    def unavailable(self, target):
        if target.platform != "cuda":
            return "it is for NVIDIA GPUs"
        packages = ("triton",) if target.interpret else ("triton", "jax-triton")
        for package in packages:
            if util.find_spec(package.replace("-", "_")) is None:
                return f"the package {package} is missing, the extra `triton` has it"
        if target.interpret:
            return None
        if target.capability is None:
            return (
                "the GPU compiled for is not known: if this machine has none, trace under "
                "jax.set_mesh of the target's mesh"
            )
        if target.capability < (8, 0):
            return "needs a GPU of compute capability 8.0, this is {}.{}".format(*target.capability)
        return _incompatible_versions()

    def unsuited(self, target, spec):
        itemsize = min(jnp.dtype(dtype).itemsize for dtype in (spec.dtype, spec.decay_dtype))
        if spec.channels * itemsize % 4 and _programs(spec) < 2 * target.multiprocessors:
            return (
                "rows that are not a multiple of 4 bytes are not copied ahead, and too few run at "
                "the same time"
            )
        return None

    def chunk_steps(self, target, spec):
        """Steps in a chunk.

        One warp for each multiprocessor nearly fills the bandwidth of the memory, two do. The
        kernel for the totals of chunks reads the inputs once more: 5 arrays of the size of the
        sequence go through memory instead of 3 (backward 7 instead of 5), so one chunk is faster
        while 3/5 of the multiprocessors are busy.
        """
        programs = _programs(spec)
        if programs >= ENOUGH * target.multiprocessors:
            return spec.time
        chunks = max(1, min(-(-2 * target.multiprocessors // programs), spec.time // _MIN_CHUNK))
        return round_up(-(-spec.time // chunks), MAX_ROWS)

    def forward(self, a, b, h0, cut, launch):
        call = _Call(a, b, cut, launch)
        operands = *call.planes(a, b, h0), cut
        return call("forward", operands, (call.sequence(b.dtype), call.per_chunk))

    def forward_totals(self, a, b, cut, launch):
        return self._totals(a, b, cut, launch, adjoint=False)

    def backward(self, a, h, h0, cut, g, c, launch, *, da_dtype):
        call = _Call(a, g, cut, launch)
        operands = *call.planes(a, h, h0), cut, *call.planes(g, c)
        da = call.sequence(da_dtype) if call.varying else call.per_chunk
        return call("backward", operands, (da, call.sequence(g.dtype), call.per_chunk))

    def backward_totals(self, a, g, cut, launch):
        return self._totals(a, g, cut, launch, adjoint=True)

    def _totals(self, a, x, cut, launch: Launch, *, adjoint: bool):
        call = _Call(a, x, cut, launch)
        product = call.per_chunk if call.varying else None
        operands = *call.planes(a, x), cut
        return call("totals", operands, (product, call.per_chunk), ADJOINT=adjoint)


class _Call:
    """Calls kernels on the rows of the sequence `x`, with the decay `a`."""

    def __init__(self, a, x, cut, launch: Launch):
        self.batch, self.time, self.channels = x.shape
        self.chunks = -(-self.time // launch.chunk)
        self.planar = isinstance(x, Planar)
        self.varying = a.shape[1] > 1
        self.cut = cut is not None
        self.dtypes = str(a.dtype), str(x.dtype)
        self.scalars = self.time, launch.chunk, launch.inner, a.shape[0]
        self.launch = launch

    def sequence(self, dtype) -> jax.ShapeDtypeStruct:
        """A plane of the size of the sequence."""
        return jax.ShapeDtypeStruct((self.batch, self.time, self.channels), dtype)

    @property
    def per_chunk(self) -> jax.ShapeDtypeStruct:
        """A plane of what enters or leaves the chunks, or is summed over each."""
        return jax.ShapeDtypeStruct((self.batch, self.chunks, self.channels), jnp.float32)

    def planes(self, *numbers) -> list:
        """Two planes of each number. A kernel does not read the second one of a real number."""
        return [x for number in numbers for x in (jax.tree.leaves(number) * 2)[:2]]

    def __call__(self, kernel: str, operands, results, **constants) -> Any:
        """Runs the kernel. `results` has the plane of each result, or `None` if there is none."""
        case = Case(
            kernel, self.planar, self.varying, self.dtypes,
            width=self.batch * self.chunks * self.channels,
        )  # fmt: skip
        config = choose_config(case, self.batch * self.chunks, self.launch.target)
        constants = {
            "PLANAR": self.planar,
            "VARYING": self.varying,
            "CUT": self.cut,
            "DESCENDING": self.launch.descending,
            "CHANNELS": self.channels,
            "BLOCK": config.block,
            "ROWS": config.rows,
            "STAGES": config.stages,
            **constants,
        }
        programs = self.batch * self.chunks * -(-self.channels // config.block)
        # Placeholders: some array, which is not read, and one element, which is not written.
        operands = [operands[0] if x is None else x for x in operands]
        unused = jax.ShapeDtypeStruct((1,), jnp.float32)
        shapes = []
        for plane in results:
            shapes += [plane or unused, plane if plane and self.planar else unused]
        if self.launch.target.interpret:
            from ._triton_interpreter import run

            outputs = run(kernel, operands, self.scalars, shapes, programs, constants)
        else:
            outputs = _triton_call(
                kernel, (*operands, *self.scalars), shapes, programs, config,
                self.launch.target.capability, constants,
            )  # fmt: skip
        pairs = zip(outputs[::2], outputs[1::2], strict=True)
        return tuple(
            None if plane is None else as_number(pair[: 1 + self.planar])
            for plane, pair in zip(results, pairs, strict=True)
        )


def _triton_call(kernel, arguments, shapes, programs, config: Config, capability, constants):
    import jax_triton  # pyright: ignore[reportMissingImports]

    from . import _triton_source

    # By default, some versions of Triton fuse a multiplication and an addition and others do not;
    # and XLA's assembler may be older than Triton's and reject its newest PTX.
    if _numbers(jax_triton.__version__) >= (0, 4):
        options = {
            "out_type": shapes,
            "backend_options": {"enable_fp_fusion": True, "ptx_version": 88},
        }
    else:
        options = {"out_shape": shapes, "enable_fp_fusion": True}
    major, minor = capability
    return jax_triton.triton_call(
        *arguments,
        kernel=getattr(_triton_source, kernel),
        name=f"linear_scan_{kernel}",
        grid=(programs,),
        num_warps=config.warps,
        compute_capability=10 * major + minor,
        **options,
        **constants,
    )


def _programs(spec) -> int:
    """Programs when time is not split."""
    return spec.batch * -(-spec.channels // narrowest_block(spec.dtype, spec.decay_dtype))


@functools.cache
def _incompatible_versions() -> str | None:
    """Why the installed jax, jax-triton and triton do not work together, or `None`."""
    jax_triton, triton = (metadata.version(name) for name in ("jax-triton", "triton"))
    old = _numbers(jax_triton) < (0, 4)
    if jax.__version_info__ >= (0, 12) and _numbers(jax_triton) <= (0, 4, 1):
        return f"jax-triton {jax_triton} does not work with jax {jax.__version__}, take jax 0.11"
    if old != (_numbers(triton) < (3, 7)):
        return f"jax-triton {jax_triton} needs triton {'3.6' if old else '3.7'}, this is {triton}"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())

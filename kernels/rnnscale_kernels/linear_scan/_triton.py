"""The recurrence on NVIDIA GPUs from Ampere on, in Triton by way of jax-triton.

The kernels are in `_triton_source.py`. What they are launched with is measured on a device by
`python -m benchmarks tune_triton`, which writes `_triton_configs.json`, or else a rule of thumb.
"""

import functools
import json
import math
from importlib import metadata, util
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

CONFIGS = Path(__file__).with_name("_triton_configs.json")

_LANES = 32  # threads of a warp
_CORES = 128  # multiprocessors of a GPU that does not say: an A100 has 108, an H100 132
_MIN_CHUNK = 512
_MAX_ROWS = 8


class Config(NamedTuple):
    """How a kernel is launched.

    - `block`: channels of a program, a multiple of the threads, at most 4 times as many.
    - `rows`: steps that are loaded together.
    - `stages`: such rounds under way, the one computed included.
    - `warps`: of a program.
    """

    block: int
    rows: int
    stages: int
    warps: int


DTYPES = ("float32", "bfloat16", "float16")


def unavailable(target) -> str | None:
    """Why it cannot run there, or `None`."""
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
            "the GPU compiled for is not known: where there is none, trace under jax.set_mesh of "
            "the target's mesh"
        )
    if target.capability < (8, 0):
        return "needs a GPU of compute capability 8.0, this is {}.{}".format(*target.capability)
    return _incompatible()


@functools.cache
def _incompatible() -> str | None:
    jax_triton, triton = (metadata.version(name) for name in ("jax-triton", "triton"))
    old = _numbers(jax_triton) < (0, 4)
    if jax.__version_info__ >= (0, 12) and _numbers(jax_triton) <= (0, 4, 1):
        return f"jax-triton {jax_triton} does not work with jax {jax.__version__}, take jax 0.11"
    if old != (_numbers(triton) < (3, 7)):
        return f"jax-triton {jax_triton} needs triton {'3.6' if old else '3.7'}, this is {triton}"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def unsuited(target, spec) -> str | None:
    """Why another would be faster, or `None`."""
    itemsize = min(jnp.dtype(dtype).itemsize for dtype in (spec.dtype, spec.decay_dtype))
    if spec.channels * itemsize % 4 and _programs(spec) < 2 * (target.cores or _CORES):
        return "rows that are no multiple of 4 bytes are not copied ahead, and few run side by side"
    return None


def chunk_steps(target, spec) -> int:
    """Steps of a chunk.

    One warp a multiprocessor nearly fills the memory's bandwidth, two do. The first pass of chunked
    time reads the inputs once more: 5 arrays the size of the sequence go through memory instead of
    3 (backward 7 instead of 5), so one chunk is faster while 3/5 of the multiprocessors are busy.
    """
    cores, programs = target.cores or _CORES, _programs(spec)
    if programs >= 0.6 * cores:
        return spec.time
    chunks = max(1, min(-(-2 * cores // programs), spec.time // _MIN_CHUNK))
    return _round_up(-(-spec.time // chunks), _MAX_ROWS)


def _programs(spec) -> int:
    """How many there are without a split of time."""
    return spec.batch * -(-spec.channels // _narrowest(spec.dtype, spec.decay_dtype))


def forward(a, b, h0, cut, *, chunk, inner, reverse, target):
    """(h, last), see `Kernels`."""
    launch = _Launch(a, b, cut, chunk, inner, target)
    h, last = launch(
        "forward", (a, b, h0, cut), (launch.sequence(b[0].dtype), launch.per_chunk),
        descending=reverse,
    )  # fmt: skip
    return h, last


def forward_totals(a, b, cut, *, chunk, inner, reverse, target):
    """(product, end), see `Kernels`."""
    return _totals(a, b, cut, chunk, inner, target, descending=reverse, adjoint=False)


def backward(a, h, h0, cut, g, c, *, chunk, inner, reverse, da_dtype, target):
    """(da, db, c_out), see `Kernels`."""
    launch = _Launch(a, g, cut, chunk, inner, target)
    da_shape = launch.sequence(da_dtype) if launch.varying else launch.per_chunk
    da, db, c_out = launch(
        "backward", (a, h, h0, cut, g, c),
        (da_shape, launch.sequence(g[0].dtype), launch.per_chunk),
        descending=not reverse,
    )  # fmt: skip
    return da, db, c_out


def backward_totals(a, g, cut, *, chunk, inner, reverse, target):
    """(product, end), see `Kernels`."""
    return _totals(a, g, cut, chunk, inner, target, descending=not reverse, adjoint=True)


def _totals(a, x, cut, chunk, inner, target, *, descending, adjoint):
    launch = _Launch(a, x, cut, chunk, inner, target)
    product_shape = launch.per_chunk if launch.varying else None
    product, end = launch(
        "totals", (a, x, cut), (product_shape, launch.per_chunk),
        descending=descending, ADJOINT=adjoint,
    )  # fmt: skip
    return product, end


class _Launch:
    """Launches kernels on the rows of `x`, with the decay `a`."""

    def __init__(self, a, x, cut, chunk, inner, target):
        self.batch, self.time, self.channels = x[0].shape
        chunk = min(chunk, self.time)
        self.chunks = -(-self.time // chunk)
        self.planar = len(x) == 2
        self.varying = a[0].shape[1] > 1
        self.cut = cut is not None
        self.dtypes = tuple(str(each[0].dtype) for each in (a, x))
        self.scalars = (self.time, chunk, inner, a[0].shape[0])
        self.target = target

    def sequence(self, dtype):
        """An array of the size of the sequence."""
        return jax.ShapeDtypeStruct((self.batch, self.time, self.channels), dtype)

    @property
    def per_chunk(self):
        """What enters or leaves the chunks, or is summed over each."""
        return jax.ShapeDtypeStruct((self.batch, self.chunks, self.channels), jnp.float32)

    def __call__(self, kernel: str, arguments, results, *, descending: bool, **constants) -> Any:
        """`results` has the shape of every number, `None` for one that there is not."""
        config = self._config(kernel)
        constants = {
            "PLANAR": self.planar,
            "VARYING": self.varying,
            "CUT": self.cut,
            "DESCENDING": descending,
            "CHANNELS": self.channels,
            "BLOCK": config.block,
            "ROWS": config.rows,
            "STAGES": config.stages,
            **constants,
        }
        programs = self.batch * self.chunks * -(-self.channels // config.block)
        arrays, shapes = self._operands(arguments, results)
        if self.target.interpret:
            from ..testing._triton_interpreter import run

            outputs = run(kernel, arrays, self.scalars, shapes, programs, constants)
        else:
            outputs = _triton_call(
                kernel, (*arrays, *self.scalars), shapes, programs, config.warps,
                self.target.capability, constants,
            )  # fmt: skip
        pairs = zip(outputs[::2], outputs[1::2], strict=True)
        return [
            None if shape is None else pair[: 1 + self.planar]
            for shape, pair in zip(results, pairs, strict=True)
        ]

    def _operands(self, arguments, results):
        """Every number as two planes. A kernel that has no use for one gets some other array to
        read, and one element to write."""
        placeholder, unused = arguments[0][0], jax.ShapeDtypeStruct((1,), jnp.float32)
        arrays = []
        for each in arguments:
            if isinstance(each, tuple):
                arrays += (each * 2)[:2]
            else:
                arrays.append(placeholder if each is None else each)
        shapes = []
        for shape in results:
            re = unused if shape is None else shape
            shapes += [re, re if self.planar else unused]
        return arrays, shapes

    def _config(self, kernel: str) -> Config:
        width = self.batch * self.chunks * self.channels
        case = case_name(kernel, self.planar, self.varying, self.dtypes, width)
        tuned = tuned_configs().get(self.target.device_kind, {}).get(case)
        if tuned is not None:
            return tuned
        # The widest block of which there is one for every multiprocessor.
        arrays = (1 + self.planar) * (self.varying + (2 if kernel == "backward" else 1))
        cores = self.target.cores or _CORES
        rows = self.batch * self.chunks
        block = 4 * _LANES
        while block > _narrowest(*self.dtypes) and rows * -(-self.channels // block) < cores:
            block //= 2
        return Config(block, rows=_MAX_ROWS if arrays <= 3 else 4, stages=6, warps=1)


def case_name(kernel: str, planar: bool, varying: bool, dtypes, width: int) -> str:
    """What there is one configuration for. `dtypes` are those of the decay and of the sequence, and
    `width` counts the channels of all rows and chunks."""
    numbers, decay = ("real", "planar")[planar], ("invariant", "varying")[varying]
    return f"{kernel} {numbers} {decay} {'/'.join(dtypes)} {2 ** int(math.log2(width))}"


@functools.cache
def tuned_configs() -> dict[str | None, dict[str, Config]]:
    """The measured configurations, by kind of device and `case_name`."""
    devices = json.loads(CONFIGS.read_text(encoding="utf-8"))
    return {
        kind: {case: Config(**config) for case, config in cases.items()}
        for kind, cases in devices.items()
    }


def _narrowest(*dtypes) -> int:
    """The narrowest block: an asynchronous copy has 4 bytes a thread or more."""
    return _LANES * max(1, 4 // min(jnp.dtype(dtype).itemsize for dtype in dtypes))


def _triton_call(kernel, arguments, shapes, programs, warps, capability, constants):
    import jax_triton  # pyright: ignore[reportMissingImports]

    from . import _triton_source

    # Multiply-add is fused or not by Triton's version unless it is said here, and the assembler of
    # XLA may be older than that of Triton, whose newest PTX it would reject.
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
        num_warps=warps,
        compute_capability=10 * major + minor,
        **options,
        **constants,
    )


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple

"""Datasheets: the memory and rates that vendors publish for each device."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hardware:
    """The datasheet of one device. Rates are per second.

    - `name`: the product name.
    - `source`: the document with the figures.
    - `memory`: bytes.
    - `memory_bandwidth`: bytes per second.
    - `flops`: dense matrix products, by the dtype of the arguments. For float32 it is the rate at
        JAX's default precision: TF32 on GPUs, bfloat16 on TPUs.
    - `interconnect`: bytes per second that it can send to other devices over NVLink, or over all
        its ICI links together.
    - `network`: bytes per second that it can send to devices of other hosts; `None` if it is the
        same.
    - `devices_per_host`: the devices that share the interconnect of a host; `None` for all.
    - `launch`: the least seconds from the end of a kernel to the start of one that needs its
        result; 0 if a program is one kernel.
    """

    name: str
    source: str
    memory: int
    memory_bandwidth: float
    flops: dict[str, float]
    interconnect: float
    network: float | None = None
    devices_per_host: int | None = None
    launch: float = 0.0


# InfiniBand NDR: 400 Gbit/s per GPU. Launches: a kernel of 2.9 us takes 3.4 us as a node of a CUDA
# graph and 3.8 us in a stream (Gray, "Getting Started with CUDA Graphs", NVIDIA, 2019; on a V100).
_GPU_HOST = {"network": 50e9, "devices_per_host": 8, "launch": 0.5e-6}

HARDWARE = {
    "a100": Hardware(
        "NVIDIA A100 SXM 80 GB", "NVIDIA A100 datasheet; InfiniBand NDR",
        memory=85_899_345_920, memory_bandwidth=2.039e12,
        flops={"bfloat16": 312e12, "float32": 156e12}, interconnect=300e9, **_GPU_HOST,
    ),
    "h100": Hardware(
        "NVIDIA H100 SXM", "NVIDIA H100 datasheet; InfiniBand NDR",
        memory=84_942_979_072, memory_bandwidth=3.35e12,
        flops={"bfloat16": 989.4e12, "float32": 494.7e12}, interconnect=450e9, **_GPU_HOST,
    ),
    "h200": Hardware(
        "NVIDIA H200 SXM", "NVIDIA H200 datasheet; InfiniBand NDR",
        memory=150_754_820_096, memory_bandwidth=4.8e12,
        flops={"bfloat16": 989.4e12, "float32": 494.7e12}, interconnect=450e9, **_GPU_HOST,
    ),
    "b200": Hardware(
        "NVIDIA B200", "NVIDIA HGX B200 datasheet; InfiniBand NDR",
        memory=191_514_411_008, memory_bandwidth=8e12,
        flops={"bfloat16": 2250e12, "float32": 1125e12}, interconnect=900e9, **_GPU_HOST,
    ),
    "v4": Hardware(
        "Google TPU v4", "Google Cloud TPU v4 documentation",
        memory=32 << 30, memory_bandwidth=1.2e12,
        flops={"bfloat16": 275e12, "float32": 275e12}, interconnect=300e9,
    ),
    "v5e": Hardware(
        "Google TPU v5e", "Google Cloud TPU v5e documentation",
        memory=16 << 30, memory_bandwidth=819e9,
        flops={"bfloat16": 197e12, "float32": 197e12}, interconnect=200e9,
    ),
    "v5p": Hardware(
        "Google TPU v5p", "Google Cloud TPU v5p documentation",
        memory=95 << 30, memory_bandwidth=2.765e12,
        flops={"bfloat16": 459e12, "float32": 459e12}, interconnect=600e9,
    ),
    "v6e": Hardware(
        "Google TPU v6e", "Google Cloud TPU v6e documentation",
        memory=32 << 30, memory_bandwidth=1.64e12,
        flops={"bfloat16": 918e12, "float32": 918e12}, interconnect=400e9,
    ),
}  # fmt: skip
"""Datasheets by the device names of `Topology.named`. The memory of a GPU is what it reports."""

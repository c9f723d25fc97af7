"""What the makers of the devices publish about them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hardware:
    """One device, by its datasheet. Rates are per second, of dense arithmetic, in one direction.

    - `name`: for people.
    - `source`: where the figures stand.
    - `memory`: bytes.
    - `memory_bandwidth`: bytes.
    - `flops`: of matrix products, by the dtype of their arguments. For float32 it is the rate of
        what JAX does by default: TF32 on GPUs, bfloat16 on TPUs.
    - `interconnect`: bytes that it sends to other devices, NVLink's or all ICI links' together.
    - `network`: bytes that it sends to devices of other hosts, where that is not the same.
    - `devices_per_host`: how many share a host's interconnect; None for all.
    """

    name: str
    source: str
    memory: int
    memory_bandwidth: float
    flops: dict[str, float]
    interconnect: float
    network: float | None = None
    devices_per_host: int | None = None


_GPU_HOST = {"network": 50e9, "devices_per_host": 8}  # InfiniBand NDR: 400 Gbit/s for each GPU

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
"""By the names of `rnnscale_kernels.testing.target_devices`. A GPU's memory is what it reports."""

"""Bytes, seconds and operations as text."""

from collections.abc import Sequence


def in_bytes(count: float) -> str:
    """A number of bytes as text, such as "12.3 MB"."""
    return _scaled(count, ("B", "kB", "MB", "GB", "TB", "PB"))


def in_seconds(count: float) -> str:
    """A time in seconds as text, such as "12.3 ms"."""
    return _scaled(count * 1e9, ("ns", "us", "ms", "s"))


def in_flops(count: float) -> str:
    """A number of operations as text, such as "12.3 TFLOP"."""
    return _scaled(count, tuple(f"{each}FLOP" for each in ("", "k", "M", "G", "T", "P")))


def _scaled(count: float, units: Sequence[str]) -> str:
    power = 0
    while count >= 1000 and power < len(units) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.3g} {units[power]}" if count < 999.5 else f"{count:.0f} {units[power]}"

"""Arithmetic on sizes, which the plans of all kernels share."""


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple that is not below `number`."""
    return -(-number // multiple) * multiple


def power_of_two_within(limit: int) -> int:
    """The largest power of two that is not above `limit`, or 0 if `limit` is 0."""
    return 1 << limit.bit_length() >> 1

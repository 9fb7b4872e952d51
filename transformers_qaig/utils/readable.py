"""Formats sizes and times for people."""


def readable_size(bits: float) -> str:
    """Returns bytes, with the unit that leaves a number below 1,000.

    Args:
        bits: the size in bits.
    """
    value, unit = bits / 8, "bytes"
    for larger in ("kB", "MB", "GB"):
        if value >= 1000:
            value, unit = value / 1000, larger
    return f"{value:.4g} {unit}"


def readable_time(seconds: float) -> str:
    """Returns `48 s`, `12 min 5 s` or `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

"""Few sizes, so that lists of other lengths run the same compiled programs."""


def rounded_up(n: int, *, steps: int = 1) -> int:
    """`n`, at least 1, rounded up to one of few sizes, `steps` of them between two powers of two."""
    power = 1 << max(n - 1, 0).bit_length()
    step = max(1, power // (2 * steps))
    return -(-max(n, 1) // step) * step

"""How many prompts are in flight."""


def largest_batch(batch: int, tokens_each: int, budget: int = 8192) -> int:
    """The largest divisor of `batch` for which no more than `budget` tokens are in flight."""
    return max(
        size for size in range(1, batch + 1) if batch % size == 0 and (size == 1 or size * tokens_each <= budget)
    )

"""Tokens as names of rows and columns."""

from collections.abc import Sequence


def token_names(tokens: Sequence[str]) -> list[str]:
    """Names each position by its token and its number: a token comes more than once."""
    shown = (token.replace("\n", "↵").strip() or "␣" for token in tokens)
    return [f"{token} {position}" for position, token in enumerate(shown)]

"""Numbers in sentences."""


def counted(number: int, noun: str) -> str:
    """`number` of a thing: "1 prompt", "2 prompts", "2 dictionaries", "2 lenses"."""
    return f"{number} {noun if number == 1 else _plural(noun)}"


def _plural(noun: str) -> str:
    return f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}es" if noun.endswith("s") else f"{noun}s"

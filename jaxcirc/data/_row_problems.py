"""What can be wrong with a row of prompts."""


class Unusable(ValueError):
    """A row that is well-formed, and that this tokenizer cannot make a prompt of."""


class Malformed(ValueError):
    """A row that is no pair of prompts."""

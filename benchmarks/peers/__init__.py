"""The same Jacobians in PyTorch, written as plainly and as well as we can. Of several formulations and chunk sizes the best is taken.

PyTorch is imported inside functions: without it our side is run alone.
"""

from importlib.util import find_spec


def missing() -> str | None:
    """Why there is no PyTorch side, or `None` if there is one."""
    return None if find_spec("torch") else "PyTorch is not installed"

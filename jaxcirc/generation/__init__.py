"""Text that goes on from a prompt, with edits at any site, and latents moved."""

from ._compare import compare as compare, Comparison as Comparison
from ._generate import generate as generate
from ._result import Generation as Generation

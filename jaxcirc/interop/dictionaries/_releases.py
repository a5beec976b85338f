"""What is known of published releases and stands in no file of theirs."""

# {Hub id: how its model was loaded, in TransformerLens' words}
_KWARGS: dict[str, dict[str, bool]] = {
    "jbloom/GPT2-Small-SAEs-Reformatted": {"center_writing_weights": True},
    "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8": {"center_writing_weights": True},
    "tommmcgrath/gpt2-small-mlp-out-saes": {"center_writing_weights": True},
    **{
        f"jbloom/GPT2-Small-OAI-v5-{width}-{site}-SAEs": {"center_writing_weights": False}
        for width in ("32k", "128k")
        for site in ("resid-post", "resid-mid", "mlp-out", "attn-out")
    },
}
# {Hub id: {hook: the factor of its training activations, sqrt(d_in) over their mean norm}}
_NORM_FACTORS: dict[str, tuple[float, ...]] = {
    "tommmcgrath/gpt2-small-mlp-out-saes": (
        1.049317316132615,
        2.3693984005104283,
        1.6411934982190302,
        1.8958522157897557,
        1.81673478700627,
        1.550234472245924,
        1.3237742807210804,
        1.1042905114723296,
        0.9123762783479742,
        0.6955335635232373,
        0.3619728926727644,
        0.2851548652550073,
    )
}

# {Hub id: how many latents of a top-k transcoder are on}
_KS = {"facebook/crv-8b-instruct-transcoders": 128}


def k_of(repository: str) -> int | None:
    """Says how many latents of a published top-k release are on, if it is known."""
    return _KS.get(repository)


def kwargs_of(repository: str) -> dict[str, bool] | None:
    """Says how the model of a published release was loaded; `None` if it is not known."""
    return _KWARGS.get(repository)


def norm_factor_of(repository: str, layer: int | None) -> float | None:
    """Finds the norm scaling factor of a published release's dictionary at `layer`; `None` if there is none."""
    factors = _NORM_FACTORS.get(repository, ())
    return factors[layer] if layer is not None and layer < len(factors) else None

"""The weight processing that a dictionary was trained under, and where it matters.

Each step of `jc.process_weights` leaves the model's log-probabilities as they are and changes only some activations. A dictionary fits
a model processed otherwise as long as the activations that it reads and writes are the same.
"""

from collections.abc import Iterable

from .._sites import Kind, Site


# Each step, and the activations that differ before and after it; at every other site the value is the same.
_CHANGES: dict[str, frozenset[Kind]] = {
    # The norm's weight and bias go into the matrices that read it, so what they read changes.
    "fold_layer_norm": frozenset({Kind.ATTN_IN, Kind.MLP_IN}),
    # The mean over d_model leaves everything that is written to the residual stream. Each norm subtracts it anyhow.
    "center_writing": frozenset(
        {
            Kind.EMBED,
            Kind.POS_EMBED,
            Kind.RESID_PRE,
            Kind.RESULT,
            Kind.ATTN_OUT,
            Kind.RESID_MID,
            Kind.MLP_OUT,
            Kind.RESID_POST,
        }
    ),
    # Shifts all logits of a position alike: no probability, and no activation before the logits.
    "center_unembed": frozenset(),
    # Each row of the pattern sums to one, so the value's bias moves past it, out of v, z and each head's result, into b_O.
    "fold_value_biases": frozenset({Kind.V, Kind.Z, Kind.RESULT}),
}
STEPS: tuple[str, ...] = tuple(_CHANGES)


def mismatch(site: Site, trained: Iterable[str] | None, model: Iterable[str]) -> tuple[str, ...]:
    """The processing steps in which a dictionary's model and this one differ, and that change the activation at `site`.

    **Arguments:**

    - `site`: what the dictionary reads or writes; ask for both where they are two.
    - `trained`: `dictionary.processing`; `None`, not known, differs from nothing.
    - `model`: `model.processing`.

    **Returns:** names of steps, in the order in which they are applied; empty if the activation is the same.

    >>> from jaxcirc.saes import mismatch
    >>> mismatch(jc.Site.parse("blocks.0.hook_mlp_out"), (), ("fold_layer_norm", "center_writing"))
    ('center_writing',)
    """
    if trained is None:
        return ()
    differing = set(trained) ^ set(model)
    return tuple(step for step in STEPS if step in differing and site.kind in _CHANGES[step])


def check_steps(steps: Iterable[str]) -> tuple[str, ...]:
    """Puts `steps` in the order in which they are applied; ValueError for a name that is none of them."""
    given = (steps,) if isinstance(steps, str) else tuple(steps)
    if unknown := [step for step in given if step not in STEPS]:
        raise ValueError(f"processing: no step is called {unknown[0]!r}. The steps are {', '.join(STEPS)}.")
    return tuple(step for step in STEPS if step in given)

"""Which classes of parts a computation knows. What works with a part's weights by itself asks here first, so that no other part is taken
for one that it is not.
"""

from ..parts import Attention, Block, GatedMLP, LayerNorm, MLP, RMSNorm, Rotary
from ._transformer import Transformer


NORMS = (LayerNorm, RMSNorm)
KNOWN: dict[str, tuple[type, ...]] = {
    "ln1": NORMS,
    "attn": (Attention,),
    "ln1_post": NORMS,
    "ln2": NORMS,
    "mlp": (MLP, GatedMLP),
    "ln2_post": NORMS,
    "ln_final": NORMS,
    # Of attention:
    "q_norm": NORMS,
    "k_norm": NORMS,
    "rotary": (Rotary,),
}
OF_BLOCK = ("ln1", "attn", "ln1_post", "ln2", "mlp", "ln2_post")
OF_ATTENTION = ("q_norm", "k_norm", "rotary")


def is_known(block: Block, *names: str) -> bool:
    """Whether a block, and its parts of these names, are of exactly the known classes: one derived from them may compute anything."""
    return type(block) is Block and all(_unknown(block, name) is None for name in names)


def is_all_known(block: Block) -> bool:
    """Whether a block and all its parts are: then another position has no part in what they make of one, but by attention."""
    return is_known(block, *OF_BLOCK)


def is_model_known(model: Transformer, *names: str) -> bool:
    """Whether `check_known` of the same takes a model."""
    in_blocks = [name for name in names if name != "ln_final"]
    ends = "ln_final" not in names or _unknown(model, "ln_final") is None
    return ends and all(is_known(block, *in_blocks) for block in model.blocks)


def check_known(what: str, model: Transformer, *names: str) -> None:
    """ValueError unless the model's blocks, and its parts of these names (`"attn"`, `"ln_final"`, …), are of the known classes."""
    for layer, block in enumerate(model.blocks):
        if type(block) is not Block:
            raise ValueError(
                f"{what}: it goes on from inside a block, and `blocks.{layer}` is a {type(block).__name__}, whose inside is not known. "
                "Any block is taken by jc.run and jc.edge."
            )
    for name in names:
        of_model = name == "ln_final"
        for layer, holder in enumerate([model] if of_model else model.blocks):
            unknown = _unknown(holder, name)
            if unknown is not None:
                place, part = unknown
                where, classes = place if of_model else f"blocks.{layer}.{place}", KNOWN[place.split(".")[-1]]
                raise ValueError(
                    f"{what}: it computes with the weights of a {' or '.join(known.__name__ for known in classes)}, and `{where}` is a "
                    f"{type(part).__name__}. Any part is taken by jc.run, jc.edge and jc.node_effects by gradients."
                )


def _unknown(holder: object, name: str) -> tuple[str, object] | None:
    """Finds which part of this name is of no known class: it, or one of attention's own. `None` if all are, or there is none."""
    part = getattr(holder, name)
    if part is None:
        return None
    if type(part) not in KNOWN[name]:
        return name, part
    inside = [_unknown(part, own) for own in OF_ATTENTION] if name == "attn" else []
    return next(((f"{name}.{found[0]}", found[1]) for found in inside if found is not None), None)

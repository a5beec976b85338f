"""Which classes of parts a computation knows. What works with a part's weights by itself asks here first, so that no other part is taken
for one that it is not.
"""

from ..parts import Attention, Block, GatedMLP, LayerNorm, MLP, RMSNorm
from ._transformer import Transformer


NORMS, MLPS = (LayerNorm, RMSNorm), (MLP, GatedMLP)
KNOWN = {
    "ln1": NORMS,
    "attn": (Attention,),
    "ln1_post": NORMS,
    "ln2": NORMS,
    "mlp": MLPS,
    "ln2_post": NORMS,
    "ln_final": NORMS,
}


def is_known(block: Block, *names: str) -> bool:
    """Whether a block, and its parts of these names, are of exactly the known classes: one derived from them may compute anything."""
    return type(block) is Block and all(_is_known(block, name) for name in names)


def check_known(what: str, model: Transformer, *names: str) -> None:
    """ValueError unless the model's blocks, and its parts of these names (`"attn"`, `"ln_final"`, …), are of the known classes."""
    for layer, block in enumerate(model.blocks):
        if type(block) is not Block:
            raise ValueError(
                f"{what}: it goes on from inside a block, and `blocks.{layer}` is a {type(block).__name__}, whose inside is not known. "
                "jc.run and jc.edge take any block."
            )
    for name in names:
        of_model = name == "ln_final"
        for layer, holder in enumerate([model] if of_model else model.blocks):
            if not _is_known(holder, name):
                where, found = name if of_model else f"blocks.{layer}.{name}", type(getattr(holder, name)).__name__
                kinds = " or ".join(kind.__name__ for kind in KNOWN[name])
                raise ValueError(
                    f"{what}: it computes with the weights of a {kinds}, and `{where}` is a {found}. jc.run, jc.edge and "
                    "jc.node_effects by gradients take any part."
                )


def _is_known(holder: Block | Transformer, name: str) -> bool:
    part = getattr(holder, name)
    return part is None or type(part) in KNOWN[name]

"""Sites: the activations that have a name.

A `Site` is where in the forward pass a value can be read or replaced. Sites are ordered by execution, so `u < d` means "computed
before", and they print as the TransformerLens hook points that papers use. Code passes `Site`s around; text is parsed only where
it enters (`Site.parse`), and every mapping keyed by sites accepts names on the way in.
"""

import dataclasses
import difflib
import enum
import functools as ft
import numbers
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import jax


class Kind(enum.IntEnum):
    """What is computed at a site, in execution order. Sites in a block are named `blocks.{layer}.` and the name here.

    | name | shape | what it holds |
    |---|---|---|
    | `hook_embed` | `seq d_model` | the row of `W_E` of each token, times the model's `embed_scale` |
    | `hook_pos_embed` | `seq d_model` | the row of `W_pos` of each position, real tokens counted from 0; not if rotary |
    | `hook_resid_pre` | `seq d_model` | what enters the block: the embeddings, then `hook_resid_post` of the block before |
    | `ln1.hook_scale` | `seq 1` | what the norm before attention divides by: the root of its input's variance or mean square |
    | `ln1.hook_normalized` | `seq d_model` | its input, in a layer norm less its mean, by the scale, *before* weight and bias |
    | `attn.hook_in` | `seq d_model` | what attention reads: `ln1.hook_normalized` after weight and bias |
    | `attn.hook_q` | `seq head d_head` | queries, bias included |
    | `attn.hook_k` | `seq kv_head d_head` | keys, bias included |
    | `attn.hook_v` | `seq kv_head d_head` | values, bias included |
    | `attn.q_norm.hook_scale` | `seq head 1` | what the norm of queries divides by; `seq 1 1` if it is of all heads together |
    | `attn.q_norm.hook_normalized` | `seq head d_head` | queries by it, *before* its weight |
    | `attn.k_norm.hook_scale` | `seq kv_head 1` | so too of keys |
    | `attn.k_norm.hook_normalized` | `seq kv_head d_head` | so too of keys |
    | `attn.hook_rot_q` | `seq head d_head` | queries after their norm, rotated by their position if that is rotary |
    | `attn.hook_rot_k` | `seq kv_head d_head` | keys, so too |
    | `attn.hook_attn_scores` | `head q_seq k_seq` | scaled products of queries and keys, capped or not, `-inf` where the mask allows none |
    | `attn.hook_pattern` | `head q_seq k_seq` | their softmax over keys |
    | `attn.hook_z` | `seq head d_head` | values, averaged by the pattern |
    | `attn.hook_result` | `seq head d_model` | `hook_z` through `W_O`, head by head; made only where it is asked for |
    | `attn.hook_out` | `seq d_model` | the sum of the heads' results, and `b_O`; of blocks with a norm behind attention |
    | `ln1_post.hook_scale` | `seq 1` | what the norm behind attention divides by |
    | `ln1_post.hook_normalized` | `seq d_model` | `attn.hook_out` by it, before the weight |
    | `hook_attn_out` | `seq d_model` | what attention adds to the residual stream |
    | `hook_resid_mid` | `seq d_model` | `hook_resid_pre` plus `hook_attn_out`; of blocks whose MLP reads it |
    | `ln2.hook_scale` | `seq 1` | what the norm before the MLP divides by |
    | `ln2.hook_normalized` | `seq d_model` | that norm's input by it, before weight and bias, as at `ln1` |
    | `mlp.hook_in` | `seq d_model` | what the MLP reads: `ln2.hook_normalized` after weight and bias |
    | `mlp.hook_pre` | `seq d_mlp` | neurons before the activation function, bias included; of a gated MLP the gates |
    | `mlp.hook_pre_linear` | `seq d_mlp` | of a gated MLP what the gates multiply, bias included |
    | `mlp.hook_act_gate` | `seq d_mlp` | `(act(pre) - act(0)) / pre`, of a gated MLP `act(pre)`; made only where it is asked for |
    | `mlp.hook_post` | `seq d_mlp` | neurons after the activation function, of a gated MLP times `mlp.hook_pre_linear` |
    | `mlp.hook_out` | `seq d_model` | the neurons through `W_out`, and `b_out`; of blocks with a norm behind the MLP |
    | `ln2_post.hook_scale` | `seq 1` | what the norm behind the MLP divides by |
    | `ln2_post.hook_normalized` | `seq d_model` | `mlp.hook_out` by it, before the weight |
    | `hook_mlp_out` | `seq d_model` | what the MLP adds to the residual stream |
    | `hook_resid_post` | `seq d_model` | what leaves the block: `hook_resid_pre`, `hook_attn_out` and `hook_mlp_out`, summed |
    | `ln_final.hook_scale` | `seq 1` | what the final norm divides by |
    | `ln_final.hook_normalized` | `seq d_model` | the last residual stream by it, before the final norm's weight and bias |
    | `hook_logit_gate` | `seq d_vocab` | logits by what they were before the cap, if there is one; made only where it is asked for |
    | `logits` | `seq d_vocab` | the final norm's output through `W_U`, and `b_U`; capped where the model caps them |

    A site that a model has no part for is not there: no norm sites in a model without norms, no MLP sites in one of attention only.
    Gates are what is left of a nonlinear function where it is held, `act(pre) = gate * pre + act(0)`; at 0 they are its derivative.
    `hook_normalized` is that of TransformerLens from version 3 on; in version 2 a layer norm's is the value *after* weight and bias, which
    is `attn.hook_in` or `mlp.hook_in` here. With a dictionary at a site, `jc.Part` says what else there is.
    """

    EMBED = 0
    POS_EMBED = 1
    RESID_PRE = 2
    LN1_SCALE = 3
    LN1_NORMALIZED = 4
    ATTN_IN = 5
    Q = 6
    K = 7
    V = 8
    Q_SCALE = 9
    Q_NORMALIZED = 10
    K_SCALE = 11
    K_NORMALIZED = 12
    ROT_Q = 13
    ROT_K = 14
    ATTN_SCORES = 15
    PATTERN = 16
    Z = 17
    RESULT = 18
    HEADS_OUT = 19
    LN1_POST_SCALE = 20
    LN1_POST_NORMALIZED = 21
    ATTN_OUT = 22
    RESID_MID = 23
    LN2_SCALE = 24
    LN2_NORMALIZED = 25
    MLP_IN = 26
    MLP_PRE = 27
    MLP_PRE_LINEAR = 28
    MLP_GATE = 29
    MLP_POST = 30
    NEURONS_OUT = 31
    LN2_POST_SCALE = 32
    LN2_POST_NORMALIZED = 33
    MLP_OUT = 34
    RESID_POST = 35
    FINAL_SCALE = 36
    FINAL_NORMALIZED = 37
    LOGIT_GATE = 38
    LOGITS = 39

    @property
    def in_block(self) -> bool:
        return Kind.RESID_PRE <= self <= Kind.RESID_POST


class Part(enum.IntEnum):
    """Of a site with a dictionary: its latents, what its decoder reads beside them, its reconstruction error, or the whole value, in the
    order in which they are tapped.
    """

    ACTS = 0
    INPUT = 1
    ERROR = 2
    VALUE = 3


_NAMES = {
    Kind.EMBED: "hook_embed",
    Kind.POS_EMBED: "hook_pos_embed",
    Kind.RESID_PRE: "hook_resid_pre",
    Kind.LN1_SCALE: "ln1.hook_scale",
    Kind.LN1_NORMALIZED: "ln1.hook_normalized",
    Kind.ATTN_IN: "attn.hook_in",
    Kind.Q: "attn.hook_q",
    Kind.K: "attn.hook_k",
    Kind.V: "attn.hook_v",
    Kind.Q_SCALE: "attn.q_norm.hook_scale",
    Kind.Q_NORMALIZED: "attn.q_norm.hook_normalized",
    Kind.K_SCALE: "attn.k_norm.hook_scale",
    Kind.K_NORMALIZED: "attn.k_norm.hook_normalized",
    Kind.ROT_Q: "attn.hook_rot_q",
    Kind.ROT_K: "attn.hook_rot_k",
    Kind.ATTN_SCORES: "attn.hook_attn_scores",
    Kind.PATTERN: "attn.hook_pattern",
    Kind.Z: "attn.hook_z",
    Kind.RESULT: "attn.hook_result",
    Kind.HEADS_OUT: "attn.hook_out",
    Kind.LN1_POST_SCALE: "ln1_post.hook_scale",
    Kind.LN1_POST_NORMALIZED: "ln1_post.hook_normalized",
    Kind.ATTN_OUT: "hook_attn_out",
    Kind.RESID_MID: "hook_resid_mid",
    Kind.LN2_SCALE: "ln2.hook_scale",
    Kind.LN2_NORMALIZED: "ln2.hook_normalized",
    Kind.MLP_IN: "mlp.hook_in",
    Kind.MLP_PRE: "mlp.hook_pre",
    Kind.MLP_PRE_LINEAR: "mlp.hook_pre_linear",
    Kind.MLP_GATE: "mlp.hook_act_gate",
    Kind.MLP_POST: "mlp.hook_post",
    Kind.NEURONS_OUT: "mlp.hook_out",
    Kind.LN2_POST_SCALE: "ln2_post.hook_scale",
    Kind.LN2_POST_NORMALIZED: "ln2_post.hook_normalized",
    Kind.MLP_OUT: "hook_mlp_out",
    Kind.RESID_POST: "hook_resid_post",
    Kind.FINAL_SCALE: "ln_final.hook_scale",
    Kind.FINAL_NORMALIZED: "ln_final.hook_normalized",
    Kind.LOGIT_GATE: "hook_logit_gate",
    Kind.LOGITS: "logits",
}
_KINDS = {name: kind for kind, name in _NAMES.items()}
_PARTS = {
    Part.ACTS: ".hook_sae_acts_post",
    Part.INPUT: ".hook_sae_decoder_input",
    Part.ERROR: ".hook_sae_error",
    Part.VALUE: "",
}


@ft.total_ordering
@dataclasses.dataclass(frozen=True)
class Site:
    """One named activation of a model.

    **Arguments:**

    - `layer`: the block, from 0; `None` for what lies outside the blocks (embeddings, final norm, logits).
    - `kind`: what is computed there.
    - `part`: `Part.ACTS`, `Part.INPUT` or `Part.ERROR` of a dictionary spliced in at this site, else `Part.VALUE`. `site.acts`,
      `site.input` and `site.error` are the short ways to write them.

    >>> from jaxcirc import Kind, Site
    >>> str(Site(3, Kind.MLP_OUT))
    'blocks.3.hook_mlp_out'
    >>> Site.parse("blocks.0.attn.hook_z") < Site(0, Kind.MLP_OUT).acts
    True
    """

    layer: int | None
    kind: Kind
    part: Part = Part.VALUE

    def __post_init__(self):
        for value, expected in ((self.kind, Kind), (self.part, Part)):
            if not isinstance(value, expected):
                raise TypeError(f"Site(layer, kind, part): expected a {expected.__name__}, got {value!r}.")
        if not isinstance(self.layer, numbers.Integral | None):
            raise TypeError(f"Site(layer, kind, part): expected an integer or None as the layer, got {self.layer!r}.")
        if self.kind.in_block != (self.layer is not None) or (self.layer is not None and self.layer < 0):
            where = (
                "in a block: give its layer, from 0" if self.kind.in_block else "outside the blocks: give layer None"
            )
            raise ValueError(f"Site: {self.kind.name} is {where}; got layer {self.layer!r}.")

    @property
    def acts(self) -> "Site":
        """The latents of the dictionary at this site."""
        return dataclasses.replace(self, part=Part.ACTS)

    @property
    def input(self) -> "Site":
        """What the decoder of the dictionary at this site reads beside the latents: the dictionary's input, where the decoder undoes a
        normalisation of it or passes it on linearly; other dictionaries have no such site.

        Latents and error split the value at the site where the decoder reads this, so moving or holding it moves what is called error,
        and the value only if latents or error are edited.
        """
        return dataclasses.replace(self, part=Part.INPUT)

    @property
    def error(self) -> "Site":
        """What the dictionary at this site does not reconstruct."""
        return dataclasses.replace(self, part=Part.ERROR)

    @property
    def value(self) -> "Site":
        """The whole activation."""
        return dataclasses.replace(self, part=Part.VALUE)

    def offset_layers(self, layers: int) -> "Site":
        """The same site `layers` blocks further on; sites outside the blocks stay."""
        return self if self.layer is None else dataclasses.replace(self, layer=self.layer + layers)

    def _order(self) -> tuple[int, int, int, int]:
        stage = 0 if self.kind < Kind.RESID_PRE else 1 if self.kind.in_block else 2
        return stage, self.layer or 0, self.kind, self.part

    def __lt__(self, other: "Site") -> bool:
        return self._order() < other._order() if isinstance(other, Site) else NotImplemented

    def __repr__(self) -> str:
        part = "" if self.part == Part.VALUE else f", Part.{self.part.name}"
        return f"Site({self.layer}, Kind.{self.kind.name}{part})"

    def __str__(self) -> str:
        prefix = "" if self.layer is None else f"blocks.{self.layer}."
        return prefix + _NAMES[self.kind] + _PARTS[self.part]

    @staticmethod
    def parse(name: "str | Site") -> "Site":
        """The site of a TransformerLens hook name, with SAELens' suffixes for a dictionary's parts."""
        if isinstance(name, Site):
            return name
        if not isinstance(name, str):
            raise TypeError(f"Expected a site or its name, got {name!r}.")
        base, part = name, Part.VALUE
        for candidate, suffix in _PARTS.items():
            if suffix and name.endswith(suffix):
                base, part = name.removesuffix(suffix), candidate
        layer, kind = None, base
        if base.startswith("blocks."):
            _, number, kind = base.split(".", 2) if base.count(".") >= 2 else ("", "", "")
            layer = int(number) if number.isdecimal() else None
        if kind not in _KINDS or _KINDS[kind].in_block != (layer is not None):
            raise ValueError(f"No site is called `{name}`. {did_you_mean(name, _all_names(layer or 0))}")
        return Site(layer, _KINDS[kind], part)


def layer_of(site: Site) -> int:
    """The layer of a site inside the blocks."""
    assert site.layer is not None
    return site.layer


def _all_names(layer: int) -> list[str]:
    names = [f"blocks.{layer}.{name}" if kind.in_block else name for kind, name in _NAMES.items()]
    return [name + part for part in reversed(_PARTS.values()) for name in names]


_NEAR = 0.6  # how alike a name has to be to be meant, by difflib
_LISTED = 6


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known name, or what there is where none is near."""
    known = list(known)
    bare = {each.replace("hook_", ""): each for each in known}
    if name in bare:  # written without it
        return f"Did you mean `{bare[name]}`?"
    ends = [each for short, each in bare.items() if short.endswith(f".{str(name).removeprefix('hook_')}")]
    near = ends[:1] or difflib.get_close_matches(str(name), known, n=1, cutoff=_NEAR)
    if near or not known:
        return f"Did you mean `{near[0]}`?" if near else "There is none."
    listed = ", ".join(f"`{each}`" for each in known[:_LISTED])
    return f"There are {len(known)}, such as {listed}." if len(known) > _LISTED else f"There is {listed}."


T = TypeVar("T")


@jax.tree_util.register_pytree_with_keys_class
class BySite(dict[Site, T]):
    """A dict keyed by sites that takes their names, too: `cache["blocks.0.hook_mlp_out"]` is `cache[jc.Site(0, jc.Kind.MLP_OUT)]`.

    A pytree like any dict, so that it crosses `jit` and `vmap`; what verbs return by site is one.
    """

    def __getitem__(self, key: Site | str) -> T:
        site = Site.parse(key)
        try:
            return super().__getitem__(site)
        except KeyError:
            known = ", ".join(f"`{site}`" for site in list(self)[:20]) or "nothing"
            raise KeyError(
                f"There is nothing at `{site}`. There is {known}{', …' if len(self) > 20 else ''}."
            ) from None

    def __contains__(self, key: object) -> bool:
        return super().__contains__(_site_or_key(key))

    def get(self, key: Site | str, default: Any = None) -> Any:
        return self[key] if key in self else default

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{str(site)!r}: {value!r}" for site, value in self.items()) + "}"

    def tree_flatten_with_keys(self):
        sites = tuple(sorted(self))  # so that the order in which it was filled makes no other tree
        return [(jax.tree_util.DictKey(site), self[site]) for site in sites], sites

    @classmethod
    def tree_unflatten(cls, sites: tuple[Site, ...], values: Iterable[T]) -> "BySite[T]":
        return cls(zip(sites, values, strict=True))


def _site_or_key(key: object) -> object:
    try:
        return Site.parse(key) if isinstance(key, str) else key
    except ValueError:
        return key


def by_site(mapping: Mapping[Site, T] | Mapping[str, T]) -> dict[Site, T]:
    """`mapping` keyed by `Site`, in execution order, whether it came keyed by sites or by their names."""
    if not isinstance(mapping, Mapping):
        raise TypeError(
            f"Expected a mapping from sites, such as jc.load_saes(…) gives, got a {type(mapping).__name__}."
        )
    parsed = [(Site.parse(key), value) for key, value in mapping.items()]
    if len({site for site, _ in parsed}) < len(parsed):
        raise ValueError("A site is given twice, once as a `Site` and once by name; keep one of the two.")
    return dict(sorted(parsed, key=lambda pair: pair[0]))

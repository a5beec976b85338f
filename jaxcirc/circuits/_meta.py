"""What is known of a circuit beside its nodes and edges: how it was found, of what, and what was noted since."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CircuitMeta(Mapping[str, Any]):
    """How a circuit was found; plain JSON throughout. What is not known is `None`.

    It is read by attribute, `circuit.meta.total_effect`, and as a mapping of what is known, `circuit.meta["total_effect"]`. A circuit with
    more in it is `circuit.annotate(title=…)`; names that are none of these fields go into `extra`, and are read as of a mapping.

    **Attributes:**

    - `model`, `dictionaries`, `d_sae`, `fingerprints`: what it is of: names, the origin of the dictionary at each site, how many latents
      each has, and by what model and dictionaries are known again.
    - `metric`, `prompts`, `length`, `bos`, `baseline`: what it explains: the metric's name, how many prompts, of which length or lengths,
      whether they begin with the beginning-of-text token, and where effects go: `"corrupt prompts"` or `"zero"`.
    - `method`, `aggregate`, `node_threshold`, `edge_threshold`, `edges_at`, `thresholds`: the settings of `jc.discover`.
    - `clean_metric`, `total_effect`, `largest_edge`, `completeness`, `certificate`: numbers and checks of `jc.discover`. -
      `recomputed`: what `jc.jacobian.Recomputed` says of edges in low precision.
    - `dtype`, `device`, `precision` (of matrix products, as configured), `versions`: where it was computed.
    - `pruned`: how `jc.prune` chose it. - `imported`, `residual_edges`, `notes`: of a circuit of the feature-circuits project.
    - `tokens`, `annotations`, `latents`, `title`, `prompts_file`: what was noted since: the prompt's tokens, what latents mean by the name
      of their node, what `jc.circuits.describe_latents` tells of them, a heading, the file that the prompts came from. - `extra`: anything
      else.
    """

    model: str | None = None
    dictionaries: dict[str, Any] | None = None
    d_sae: dict[str, int] | None = None
    fingerprints: dict[str, Any] | None = None
    metric: str | None = None
    prompts: int | None = None
    length: int | list[int] | None = None
    bos: bool | None = None
    baseline: str | None = None
    method: dict[str, Any] | None = None
    aggregate: str | None = None
    node_threshold: float | None = None
    edge_threshold: float | None = None
    edges_at: str | None = None
    thresholds: str | None = None
    clean_metric: float | None = None
    total_effect: float | None = None
    largest_edge: float | None = None
    completeness: dict[str, float] | None = None
    certificate: dict[str, Any] | None = None
    recomputed: dict[str, Any] | None = None
    dtype: str | None = None
    device: str | None = None
    precision: str | None = None
    versions: dict[str, str] | None = None
    pruned: dict[str, Any] | None = None
    imported: dict[str, Any] | None = None
    residual_edges: str | None = None
    notes: list[str] | None = None
    tokens: list[str] | None = None
    annotations: dict[str, str] | None = None
    latents: dict[str, Any] | None = None
    title: str | None = None
    prompts_file: str | None = None
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    @staticmethod
    def of(given: Mapping[str, Any]) -> "CircuitMeta":
        """Sorts what is given into the fields and `extra`."""
        known = {name: given[name] for name in _NAMES if name in given}
        return CircuitMeta(**known, extra={name: value for name, value in given.items() if name not in _NAMES})

    def as_dict(self) -> dict[str, Any]:
        """What is known, as plain JSON that `CircuitMeta.of` reads."""
        known = {name: getattr(self, name) for name in _NAMES}
        # Of a circuit that was found here without edges, None is what their threshold and certificate are.
        none_too = {"edge_threshold", "certificate"} if self.clean_metric is not None else set()
        return {**{name: value for name, value in known.items() if value is not None or name in none_too}, **self.extra}

    def __getitem__(self, name: str) -> Any:
        return self.as_dict()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.as_dict())

    def __len__(self) -> int:
        return len(self.as_dict())

    def __repr__(self) -> str:
        return f"CircuitMeta({self.as_dict()})"


_NAMES = tuple(field.name for field in dataclasses.fields(CircuitMeta) if field.name != "extra")

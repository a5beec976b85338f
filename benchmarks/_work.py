"""How much arithmetic a Jacobian takes: a multiplication and an addition count as two operations.

`own` counts what the closed forms need, where the causal mask lets a key be attended: no padding, no copies, no sums over items that are
not there. `autodiff` counts what a tangent through the whole sublayer at a time takes, T positions wide, and `M` of those.

D is the width, H heads, T positions, M covectors, K vectors. Elementwise work (norms, softmax, activation) is left out.
"""


def attention_edges(*, d_model: int, heads: int, seq: int, m: int, k: int, frozen: bool = False) -> dict[str, float]:
    """Covectors to attention's output (M D D), vectors to their values and keys (2 K D D); scores of the values with and of the keys for
    every covector (2 M T D, half of it masked), what queries have of the keys (K T D); values and scores where a key may be attended
    (M K (D + 2 H), half of it masked), what has passed the queries (M D D, and M K D at equal positions); the clean run (4 T D D).
    """
    D, T, H, reached = d_model, seq, heads, (seq + 1) / (2 * seq)
    own = m * D * D + k * D * D + m * k * (D + H) * reached + 4 * T * D * D
    if not frozen:
        own += m * D * D + k * D * D + 2 * m * T * D * reached + k * T * D + m * k * H * reached + m * k * D / T
    return {"own": 2 * own, "autodiff": m * _attention_sweep(D, T, frozen)}


def mlp_edges(*, d_model: int, seq: int, m: int, k: int) -> dict[str, float]:
    """The fewer items through the MLP (8 min(M, K) D D), and M K D at equal positions; the clean run (12 T D D)."""
    D, T = d_model, seq
    own = 8 * min(m, k) * D * D + m * k * D / T + 12 * T * D * D
    return {"own": 2 * own, "autodiff": 16.0 * m * T * D * D}


def block_edges(*, d_model: int, heads: int, seq: int, m: int, k: int) -> dict[str, float]:
    """As attention, with every covector first through the MLP (8 M D D); the clean run of the MLP (8 T D D)."""
    attention = attention_edges(d_model=d_model, heads=heads, seq=seq, m=m, k=k)
    D, T = d_model, seq
    return {
        "own": attention["own"] + 2 * (8 * m * D * D + 8 * T * D * D),
        "autodiff": attention["autodiff"] + 16.0 * m * T * D * D,
    }


def span_edges(*, layers: int, d_model: int, heads: int, seq: int, m: int, k: int) -> dict[str, float]:
    """The fewer items at the positions that they reach, half of all: through a block 12 D D and scores and values (3 T D, half of it
    masked), less in the first, whose projections are of the other items, and in the last, which is local; the clean run (12 T D D a block).
    """
    D, T, n, reached = d_model, seq, min(m, k), (seq + 1) / 2
    block = n * reached * (12 * D * D + 3 * reached * D)
    own = (
        (layers - 1) * block - 3 * n * reached * D * D + (m + k) * 12 * D * D + m * k * 4 * D + layers * 12 * T * D * D
    )
    return {"own": 2 * own, "autodiff": layers * n * (_attention_sweep(D, T, False) + 16.0 * T * D * D)}


def sae_edges(*, d_model: int, heads: int, seq: int, m: int, k: int, d_sae: int) -> dict[str, float]:
    """As attention, with the target's latents encoded, to know which are on (T D d_sae)."""
    attention = attention_edges(d_model=d_model, heads=heads, seq=seq, m=m, k=k)
    return {**attention, "own": attention["own"] + 2 * seq * d_model * d_sae}


def features(*, d_model: int, heads: int, seq: int, m: int, k: int, d_sae: int) -> dict[str, float]:
    """Two blocks run (24 T D D) and both dictionaries encoded (8 T D d_sae); the fewer items out of one MLP, through attention at their own
    position and into the next MLP (12 min(M, K) D D, scores 2 min(M, K) T D), where they meet (4 M K D / T). Cosines are left out.
    Autodiff: one MLP's output, attention and the next one's input, at all positions.
    """
    D, T, n = d_model, seq, min(m, k)
    own = 24 * T * D * D + 8 * T * D * d_sae + 12 * n * D * D + 2 * n * T * D + 4 * m * k * D / T
    return {"own": 2.0 * own, "autodiff": m * (16.0 * T * D * D + _attention_sweep(D, T, False))}


def full(*, d_model: int, heads: int, seq: int, layers: int) -> dict[str, float]:
    """One block: the edges of all unit vectors, M = K = T D. Every further block pushes those T D columns at the positions that they
    reach (half): four projections (4 D D), the MLP and its norm as one matrix a position (D D), scores and values (3 T D, half of it
    masked); and makes that matrix (8 T D D D).
    """
    D, T, n = d_model, seq, seq * d_model
    first = block_edges(d_model=D, heads=heads, seq=T, m=n, k=n)
    reached = (T + 1) / 2
    more = 2 * (n * reached * (5 * D * D + 3 * reached * D) + 8 * T * D**3)
    sweep = _attention_sweep(D, T, False) + 16 * T * D * D
    return {"own": first["own"] + (layers - 1) * more, "autodiff": layers * n * sweep}


def _attention_sweep(D: int, T: int, frozen: bool) -> float:
    """One tangent or cotangent at all positions: projections and products with scores."""
    return 2.0 * (2 * T * D * D + T * T * D) if frozen else 2.0 * (4 * T * D * D + 4 * T * T * D)


def circuit_nodes(
    *, layers: int, d_model: int, heads: int, seq: int, batch: int, vocabulary: int, d_sae: int, steps: int
) -> dict[str, float]:
    """For every site and step but the first, which is the same for all, what comes after it, forward and back (12 D D T + T T D a block,
    4 D D T + T T D of it attention's), and the unembedding of one position; for every site its dictionary's encoder twice; and both
    prompts' runs and one gradient. Autodiff runs the whole model forward, and the decoder at every step, there and back.
    """
    D, T = d_model, seq
    halves, unembed = (4 * D * D * T + T * T * D, 8 * D * D * T), T * D * vocabulary
    # Halves of blocks after each site: the embedding, and each layer's attention, MLP and end.
    after = [layers * sum(halves)]
    for later in reversed(range(layers)):
        after += [halves[1] + later * sum(halves), *2 * [later * sum(halves)]]
    coder, whole = T * D * d_sae, layers * sum(halves)
    own = sum(2 * (steps - 1) * (blocks + D * vocabulary) + 2 * coder for blocks in after) + 4 * whole
    autodiff = sum(steps * (whole + blocks + 2 * unembed + 2 * coder) + 4 * coder for blocks in after)
    return {"own": 2.0 * batch * own, "autodiff": 2.0 * batch * autodiff}


def circuit_edges(
    *,
    layers: int,
    d_model: int,
    heads: int,
    seq: int,
    batch: int,
    vocabulary: int,
    d_sae: int,
    rows: int,
    columns: int,
) -> dict[str, float]:
    """For every wire its closed form, for as many rows as there are on average: through attention a row to its output, its values and its
    queries (3 D D), to the positions that it reaches (T H D), and there to the columns (K D, half of it masked); the clean run of a
    sublayer. Autodiff: for every row half of the blocks, and both ends' dictionaries, there and back.
    """
    D, T, wires = d_model, seq, 6 * layers
    m = max(1, round(rows / wires / batch))
    reached = (T + 1) / (2 * T)
    attention = 2.0 * (m * (3 * D * D + 2 * T * heads * D * reached + columns * D * reached) + 4 * T * D * D)
    mlp = mlp_edges(d_model=D, seq=T, m=m, k=columns)["own"]
    skip = 2.0 * m * columns * D / T
    own = batch * layers * (attention + 2 * mlp + 3 * skip)
    row = layers / 2 * (12 * D * D * T + T * T * D) + 4 * T * D * d_sae
    return {"own": own, "autodiff": 2.0 * batch * rows * row}


def self_repair(*, layers: int, d_model: int, heads: int, seq: int, batch: int, vocabulary: int) -> dict[str, float]:
    """For every head the MLP of its layer (8 D D T) and all blocks after it (12 D D T + T T D each); the clean and the other run, and the
    heads' projections of a direction (D D T a layer). `autodiff` is two whole runs for every head, with the unembedding, and all heads'
    outputs and their direct effects (D D T a layer, and H T D).
    """
    D, T = d_model, seq
    block = 12 * D * D * T + T * T * D
    own = heads * sum(8 * D * D * T + later * block for later in range(layers)) + layers * (2 * block + D * D * T)
    whole = layers * block + T * D * vocabulary
    loop = layers * heads * (2 * whole + layers * (D * D * T + heads * T * D))
    return {"own": 2.0 * batch * own, "autodiff": 2.0 * batch * loop}


def patching(*, layers: int, d_model: int, heads: int, seq: int, batch: int, vocabulary: int) -> dict[str, float]:
    """For every cell the blocks behind it (12 D D T + T T D each), of a head after its layer's MLP (8 D D T); of positions those that can
    differ, all from the first token that does, and at the first layer three; and two clean runs. `autodiff` is a whole run for every cell,
    with the unembedding.
    """
    D, T = d_model, seq
    block = 12 * D * D * T + T * T * D
    moved = lambda layer: T - T // 6 if layer else 3
    of_positions = sum(moved(layer) * (layers - layer) * block for layer in range(layers))
    of_heads = heads * sum(8 * D * D * T + later * block for later in range(layers))
    whole = layers * block + T * D * vocabulary
    return {
        "own": 2.0 * batch * (of_positions + of_heads + 4 * layers * block),
        "autodiff": 2.0 * batch * layers * (T + heads) * whole,
    }


def scrubbing(
    *, layers: int, d_model: int, heads: int, seq: int, batch: int, vocabulary: int, samples: int
) -> dict[str, float]:
    """A plain run of each prompt, and for each of three heads in each sample the attention of its layer (4 D D T + T T D). `autodiff` is
    a whole run for each of 12 claims and the 3 heads that read them, for these 3 once more without them, and for the logits.
    """
    D, T = d_model, seq
    attention, whole = 4 * D * D * T + T * T * D, layers * (12 * D * D * T + T * T * D)
    own = whole + samples * 3 * attention
    return {"own": 2.0 * batch * own, "autodiff": 2.0 * batch * samples * 19 * whole}


def path_patching(
    *, layers: int, d_model: int, heads: int, seq: int, batch: int, vocabulary: int, senders: int, first: int
) -> dict[str, float]:
    """For every sender three queries (D D T / heads each), and the blocks from the `first` receiver's on (12 D D T + T T D each); and two
    clean runs. `autodiff` is a whole run for every sender, with the unembedding.
    """
    D, T = d_model, seq
    block = 12 * D * D * T + T * T * D
    of_sender = 3 * D * D * T / heads + (layers - first) * block
    return {
        "own": 2.0 * batch * (senders * of_sender + 2 * layers * block),
        "autodiff": 2.0 * batch * senders * (layers * block + T * D * vocabulary),
    }


def node_edges(*, layers: int, d_model: int, seq: int, nodes: int) -> dict[str, float]:
    """Two thirds of the layers are upstream of a node on average: of each its neurons (4 D D) and its heads (D D, and T D with the values);
    the way back through the sublayer is not counted; the clean run there, and there and back again (4 times 12 T D D a layer). Autodiff:
    the same at all positions.
    """
    D, T, L = d_model, seq, layers
    each = 2 / 3 * L * (5 * D * D + T * D)
    return {"own": 2 * (nodes * each + 4 * L * 12 * T * D * D), "autodiff": 2 * nodes * T * each}


def exact_edges(
    *, layers: int, d_model: int, seq: int, batch: int, receivers: list[tuple[str, int]]
) -> dict[str, float]:
    """For every edge, given its receiver's part and layer: the MLP of that layer (8 D D T) and all blocks after it (12 D D T + T T D), the
    last at one position but for its keys and values (2 D D T + 10 D D); into the logits nothing. `autodiff` is a whole run an edge.
    """
    D, T = d_model, seq
    block = 12 * D * D * T + T * T * D
    last = 2 * D * D * T + 10 * D * D
    behind = {layer: 8 * D * D * T + max(0, layers - 2 - layer) * block + last for layer in range(layers - 1)}
    own = sum(behind.get(layer, 8 * D * D) for part, layer in receivers if part != "logits")
    return {"own": 2.0 * batch * own, "autodiff": 2.0 * batch * len(receivers) * layers * block}


def edge_attribution(*, layers: int, d_model: int, heads: int, seq: int, batch: int) -> dict[str, float]:
    """Three runs there and one back (12 D D T + T T D a layer each, twice as much back), and each sender's difference times each receiver's
    gradient (T D). `autodiff` is the same.
    """
    D, T, H, L = d_model, seq, heads, layers
    products = sum(3 * H * (1 + (H + 1) * i) + 1 + H + (H + 1) * i for i in range(L)) + 1 + (H + 1) * L
    own = 2.0 * batch * (5 * L * (12 * D * D * T + T * T * D) + products * T * D)
    return {"own": own, "autodiff": own}


def lens(*, layers: int, d_model: int, seq: int, skip_first: int) -> dict[str, float]:
    """Through each block but the first, at each of the W positions that have a part, the MLP's matrix (4 D D D) and D rows by it (D D D),
    four projections of them (4 D D D), and values and scores (4 W D D, half of it masked); the clean run (12 T D D a block). Autodiff: the
    projections and the MLP for each row (12 D D), at all T positions.
    """
    D, T, W = d_model, seq, seq - 1 - skip_first
    own = (layers - 1) * W * D * D * (9 * D + 2 * W) + layers * 12 * T * D * D
    return {"own": 2 * own, "autodiff": 2.0 * (layers - 1) * T * D * D * (12 * D + 4 * T)}

"""Prompts, run: the problem that verbs are given, the clean run, runs that go on from a cut of it, and how many of them at once."""

from ._batches import (
    allowance as allowance,
    at_once as at_once,
    BUDGET as BUDGET,
    halving as halving,
    in_groups as in_groups,
    in_loop as in_loop,
    of_size as of_size,
    repeated as repeated,
    rounded_up as rounded_up,
    some_at_once as some_at_once,
    TOKENS_AT_ONCE as TOKENS_AT_ONCE,
    WAY_BACK as WAY_BACK,
)
from ._corpus import Corpus as Corpus, corpus_batches as corpus_batches, corpus_prompts as corpus_prompts
from ._gradients import bytes_held as bytes_held, cut_gradients as cut_gradients
from ._lengths import (
    filled as filled,
    lengthened as lengthened,
    metric_name as metric_name,
    padded_length as padded_length,
    shortened as shortened,
)
from ._moved import Moves as Moves, record_moves as record_moves
from ._problem import (
    ALL_LOGITS as ALL_LOGITS,
    check_saes as check_saes,
    prepare as prepare,
    prepare_prompts as prepare_prompts,
    Problem as Problem,
)
from ._receivers import bytes_of_way_back as bytes_of_way_back, receiver_gradients as receiver_gradients
from ._recorded import apart as apart, record as record, record_sides as record_sides, Recorded as Recorded
from ._resume import (
    attend as attend,
    metric_from as metric_from,
    metric_of_variants as metric_of_variants,
    onwards as onwards,
    resume as resume,
)
from ._sizes import (
    cheapest as cheapest,
    size_for as size_for,
    sizes_without_history as sizes_without_history,
)
from ._together import tokens_together as tokens_together
from ._until import values_until as values_until
from ._windows import Window as Window, windows_of as windows_of
from ._worlds import (
    as_graph as as_graph,
    bytes_of_variant as bytes_of_variant,
    feed_own as feed_own,
    run_worlds as run_worlds,
    worlds_from as worlds_from,
)
from ._writes import (
    attention_writes as attention_writes,
    block_writes as block_writes,
    embedding_writes as embedding_writes,
    kinds_written as kinds_written,
    mlp_writes as mlp_writes,
    sender_writes as sender_writes,
    sites_written as sites_written,
    writes_of as writes_of,
)

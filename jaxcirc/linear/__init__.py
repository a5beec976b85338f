"""The linearised model: segments of it, and the maps of their parts in closed form."""

from ._block import linearise as linearise, pull as pull, push as push
from ._chain import chain_matrix as chain_matrix
from ._contract import contract_block as contract_block, sizes_for as sizes_for
from ._dense import block_matrix as block_matrix
from ._ends import source_vectors as source_vectors, target_covectors as target_covectors
from ._forms import (
    attends as attends,
    is_chain as is_chain,
    is_closed as is_closed,
    is_folded as is_folded,
    is_local as is_local,
    LOCAL as LOCAL,
    read_site as read_site,
)
from ._memory import BUDGET as BUDGET, check_fits as check_fits, halving as halving
from ._same_position import contract_own as contract_own, TILE as TILE
from ._segment import (
    between_blocks as between_blocks,
    jvp as jvp,
    make_span as make_span,
    Span as Span,
    vjp as vjp,
)
from ._sizes import rounded_up as rounded_up
from ._sweep import contract_spans as contract_spans

"""The linearised model: segments of it, and the maps of their parts in closed form."""

from ._chain import chain_matrix as chain_matrix
from ._cost import chunk_for as chunk_for, numbers_held as numbers_held
from ._dense import block_matrix as block_matrix
from ._forms import (
    attends as attends,
    is_chain as is_chain,
    is_closed as is_closed,
    is_dense as is_dense,
    LOCAL as LOCAL,
)
from ._memory import check_fits as check_fits, free_memory as free_memory
from ._pull_rows import head_means as head_means, pull_rows as pull_rows
from ._rows_back import meet_batch as meet_batch, pull_batch as pull_batch, spread_batch as spread_batch
from ._same_position import contract_own as contract_own, TILE as TILE
from ._segment import (
    between_blocks as between_blocks,
    jvp as jvp,
    make_segment as make_segment,
    Segment as Segment,
    vjp as vjp,
)
from ._segments import (
    contract_batch as contract_batch,
    contract_by_plan as contract_by_plan,
    contract_by_steps as contract_by_steps,
    contract_by_sweeps as contract_by_sweeps,
    is_contraction as is_contraction,
    Items as Items,
)
from ._steps import are_steps_closed as are_steps_closed

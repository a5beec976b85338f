from ._known import (
    check_known as check_known,
    is_all_known as is_all_known,
    is_known as is_known,
    is_model_known as is_model_known,
    OF_BLOCK as OF_BLOCK,
)
from ._masks import attention_mask as attention_mask
from ._pieces import Pieces as Pieces
from ._processing import process_weights as process_weights
from ._spans import through_blocks as through_blocks
from ._transformer import Transformer as Transformer

from ._masks import attention_mask as attention_mask
from ._transformer import Transformer as Transformer

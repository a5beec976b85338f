"""What nodes write and read."""

from ._latents import (
    covectors as covectors,
    from_lists as from_lists,
    Latents as Latents,
    listed as listed,
    of_one_size as of_one_size,
    read as read,
    vectors as vectors,
    widened as widened,
    write as write,
)

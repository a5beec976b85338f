"""What nodes write and read."""

from ._latents import (
    bytes_through as bytes_through,
    covectors as covectors,
    from_instances as from_instances,
    Latents as Latents,
    listed as listed,
    not_zero as not_zero,
    of_one_size as of_one_size,
    read as read,
    vectors as vectors,
    widened as widened,
    write as write,
    write_tiles as write_tiles,
    WriteTiles as WriteTiles,
)

"""A small answer that decompresses to a gigabyte."""

import gzip
import zlib
from functools import lru_cache

#: The decompressed size, in MiB.
SIZE = 1100


@lru_cache(maxsize=1)
def bomb() -> bytes:
    """About a kilobyte: zeros, compressed twice, without ever holding the whole in memory.

    It lacks the checksums at its end, which no reader reaches.
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    first, more = (
        packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2)
    )
    return gzip.compress(first + (SIZE - 1) * more)

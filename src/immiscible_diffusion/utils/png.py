"""Whether a PNG file is as it was written."""

import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def is_whole_png(content: bytes) -> bool:
    """Return whether ``content`` is a PNG from its signature to its end, every chunk with its CRC-32.

    Libraries decode images with flipped bits, or cut short, without a word.
    """
    at, kind = len(SIGNATURE), b""
    if not content.startswith(SIGNATURE):
        return False
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        kind = content[at + 4 : at + 8]
        if content[end - 4 : end] != zlib.crc32(content[at + 4 : end - 4]).to_bytes(4, "big"):
            return False
        at = end
    return kind == b"IEND"

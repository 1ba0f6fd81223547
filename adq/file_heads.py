"""An image file as a head, which other files of its kind share, and its own bytes: of a set, each head is stored once.

A file is put together from its head and its own bytes (`join`) by what the head begins with:

    nothing       the own bytes are the file. So for every file that is not exactly of one of the forms below
    FF D8         JPEG. The head holds everything up to the first scan's header, that included, then the EOI marker FF D9 where the
                  file ends in one; the own bytes go before that marker: the scan, or of several all scans with what lies between
    "RIFFWEBP"    WebP of one chunk. The name of the chunk follows, then its bytes 3 to 9 ("VP8 ": start code and sides) or 0 to 4
                  ("VP8L": signature, sides, alpha, version); the own bytes are its others. The sizes and the padding byte are
                  made anew
    89 "PNG"...   PNG. The signature of 8 bytes, the 13 bytes of IHDR, then the names of the further chunks but IEND, 4 bytes each.
                  The own bytes are the data of these chunks, before each but the last its length (varint). Lengths, CRCs and
                  IEND are made anew

Varints are those of `adq.varints`.
"""

import struct
import zlib

from adq.varints import Reader, varint

LARGEST = 1 << 31  # bytes of a file, and of those of a container together: memory stays near it
SOI, EOI, SOS = b"\xff\xd8", b"\xff\xd9", 0xDA
RIFF = b"RIFFWEBP"
SHARED = {b"VP8 ": (3, 10), b"VP8L": (0, 5)}  # what of a WebP's chunk is in the head
PNG = b"\x89PNG\r\n\x1a\n"
IHDR, IEND = b"\0\0\0\x0dIHDR", b"IEND"
PNG_HEAD = len(PNG) + 13


def split(data: bytes) -> tuple[bytes, bytes]:
    """A file as its head, which other files of its kind share, and its own bytes: `join` makes the same file of them.

    Returns:
        (head, own); the head is empty, and the file its own bytes, where it is not exactly a JPEG, WebP or PNG of the forms above.
    """
    cut = next((cut for magic, cut in CUTS.items() if data.startswith(magic)), None)
    if cut is not None and len(data) <= LARGEST:
        try:
            head, own = cut(data)
            if head and join(head, own) == data:
                return head, own
        except ValueError:
            pass
    return b"", data


def join(head: bytes, own: bytes) -> bytes:
    """The file of a head and its own bytes. Raises ValueError where they are of no form that `split` gives."""
    if not head:
        return own
    if len(head) + len(own) > LARGEST:
        raise ValueError(f"an image of {len(head) + len(own):,} bytes; expected at most {LARGEST:,}")
    if head.startswith(SOI):
        return head[:-2] + own + EOI if head.endswith(EOI) else head + own
    if head.startswith(RIFF):
        return _join_webp(head, own)
    if head.startswith(PNG):
        return _join_png(head, own)
    raise ValueError(f"a head begins with {head[:8]!r}: no JPEG, WebP or PNG")


def _cut_jpeg(data: bytes) -> tuple[bytes, bytes]:
    at = 2
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        marker = data[at + 1]
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == SOS:
            return (data[:at] + EOI, data[at:-2]) if data.endswith(EOI) else (data[:at], data[at:])
    raise ValueError("no scan follows the headers")


def _cut_webp(data: bytes) -> tuple[bytes, bytes]:
    name, size = data[12:16], int.from_bytes(data[16:20], "little")
    if name not in SHARED:
        raise ValueError(f"a chunk {name!r} comes first")
    (first, last), body = SHARED[name], data[20 : 20 + size]
    return RIFF + name + body[first:last], body[:first] + body[last:]


def _join_webp(head: bytes, own: bytes) -> bytes:
    start = len(RIFF) + 4
    name, shared = head[len(RIFF) : start], head[start:]
    first, last = SHARED.get(name, (0, 0))
    if not last or len(shared) != last - first or len(own) < first:
        raise ValueError(f"a WebP's head of {len(head)} bytes, its chunk {name!r}, and {len(own)} own bytes")
    size = len(own) + len(shared)
    padding = size % 2
    sizes = [struct.pack("<I", number) for number in (12 + size + padding, size)]
    return b"".join([b"RIFF", sizes[0], b"WEBP", name, sizes[1], own[:first], shared, own[first:], bytes(padding)])


def _cut_png(data: bytes) -> tuple[bytes, bytes]:
    names, bodies, at = [], [], len(PNG) + len(IHDR) + 13 + 4
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        names.append(data[at + 4 : at + 8])
        bodies.append(data[at + 8 : at + 8 + size])
        at += 12 + size
    if names[-1:] != [IEND]:
        raise ValueError("IEND is not the last chunk")
    names, bodies = names[:-1], bodies[:-1]
    own = b"".join(varint(len(body)) + body for body in bodies[:-1]) + b"".join(bodies[-1:])
    start = len(PNG) + len(IHDR)
    return data[: len(PNG)] + data[start : start + 13] + b"".join(names), own


def _join_png(head: bytes, own: bytes) -> bytes:
    if len(head) < PNG_HEAD or (len(head) - PNG_HEAD) % 4 or (own and len(head) == PNG_HEAD):
        raise ValueError(f"a PNG's head of {len(head)} bytes for {len(own)} own bytes")
    names = [head[at : at + 4] for at in range(PNG_HEAD, len(head), 4)]
    reader = Reader(own, 0, len(own))
    bodies = [reader.take(reader.varint()) for _ in names[:-1]] + [reader.rest() for _ in names[-1:]]
    chunks = [IHDR + head[len(PNG) : PNG_HEAD]]
    chunks += [struct.pack(">I", len(body)) + name + body for name, body in zip(names, bodies, strict=True)]
    chunks.append(bytes(4) + IEND)
    return head[: len(PNG)] + b"".join(chunk + struct.pack(">I", zlib.crc32(chunk[4:])) for chunk in chunks)


CUTS = {SOI: _cut_jpeg, b"RIFF": _cut_webp, PNG: _cut_png}

"""Varints, whole numbers in as few bytes as they need, and a reader of bytes that hold them.

A varint has 7 bits a byte, lowest first, the top bit set in all but its last byte, and no more bytes than it needs.
"""

import numpy as np


def varint(value: int) -> bytes:
    """The bytes of a number from 0."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def varint_bytes(values: np.ndarray) -> np.ndarray:
    """How many bytes each number of int64 [n] takes as a varint, int64 [n]."""
    return 1 + sum((values >> shift > 0).astype(np.int64) for shift in range(7, 63, 7))


class Reader:
    """Bytes read from front to back. What lies beyond the end raises ValueError."""

    def __init__(self, data: bytes, at: int, end: int):
        self.data, self.at, self.end = data, at, end

    def take(self, count: int) -> bytes:
        if count > self.end - self.at:
            raise ValueError(f"{count:,} bytes are expected, but {self.end - self.at:,} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def rest(self) -> bytes:
        return self.take(self.end - self.at)

    def varint(self) -> int:
        value = shift = 0
        while shift < 35:
            (byte,) = self.take(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise ValueError("a length takes more than five bytes")

    def text(self, width: int) -> str:
        """Raises UnicodeDecodeError, which is a ValueError."""
        return self.take(int.from_bytes(self.take(width), "little")).decode()

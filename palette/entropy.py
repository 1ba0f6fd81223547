"""An adaptive entropy coder: interleaved range ANS, a lane for each image, whole numbers only.

All images are coded side by side, one symbol of each at a time, under one model that learns from all of them. The bytes follow from
the symbols alone: no library's version plays a part. FORMAT.md says it for other languages.

rANS: J. Duda, Asymmetric numeral systems, arXiv 1311.2540; interleaving: F. Giesen, arXiv 1402.3392.
"""

import numpy as np

BITS = 14  # frequencies of a context sum to 2^14
LOW = 1 << 16  # a state lies in [2^16, 2^32)
STRENGTH = 32  # how many symbols a context's share of all contexts together weighs
RENEWAL = 1 << 16  # a context with more symbols forgets half of them


class Model:
    """Frequencies of symbols 0 to alphabet - 1 in each context, learnt while coding.

    For at most 2^20 lanes, 16 contexts and an alphabet of 256: the products below stay under 2^63.
    """

    def __init__(self, contexts: int, alphabet: int):
        self.alphabet = alphabet
        self.counts = np.zeros((contexts, alphabet), dtype=np.int64)
        self.prior = 1 + 64 // (1 + np.arange(alphabet, dtype=np.int64))  # small symbols are the likely ones

    def frequencies(self) -> tuple[np.ndarray, np.ndarray]:
        """(frequencies, starts) int64 [contexts, alphabet]: at least 1 each, 2^14 in a context; starts are the sums before."""
        every = self.prior + self.counts.sum(axis=0)
        total = every.sum()
        weights = self.counts * total + STRENGTH * every
        sums = (self.counts.sum(axis=1, keepdims=True) + STRENGTH) * total
        frequencies = 1 + weights * ((1 << BITS) - self.alphabet) // sums
        frequencies[:, 0] += (1 << BITS) - frequencies.sum(axis=1)
        return frequencies, np.cumsum(frequencies, axis=1) - frequencies

    def learn(self, contexts: np.ndarray, symbols: np.ndarray) -> None:
        """Count one step: `symbols` [lanes] that were coded in `contexts` [lanes]."""
        seen = np.bincount(contexts * self.alphabet + symbols, minlength=self.counts.size)
        self.counts += seen.reshape(self.counts.shape)
        full = self.counts.sum(axis=1) > RENEWAL
        self.counts[full] >>= 1


class Encoder:
    """Collects the symbols of all lanes, step by step; `finish` gives the bytes."""

    def __init__(self, lanes: int):
        self.lanes = lanes
        self.steps: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def put(self, model: Model, lanes: np.ndarray, contexts: np.ndarray, symbols: np.ndarray) -> None:
        """One symbol for each of `lanes` (int [n], ascending), in its context; the model learns."""
        frequencies, starts = model.frequencies()
        self.steps.append(
            (lanes, frequencies[contexts, symbols].astype(np.uint16), starts[contexts, symbols].astype(np.uint16))
        )
        model.learn(contexts, symbols)

    def finish(self) -> bytes:
        """The states of the lanes, u32, then words, u16, in the order in which a decoder wants them; little endian."""
        states = np.full(self.lanes, LOW, dtype=np.int64)
        words: list[np.ndarray] = []
        for lanes, frequency, start in reversed(self.steps):  # what is coded last is decoded first
            state, frequency = states[lanes], frequency.astype(np.int64)
            full = state >= frequency << (32 - BITS)
            words.append((state[full] & 0xFFFF).astype("<u2"))
            state[full] >>= 16
            states[lanes] = (state // frequency << BITS) + state % frequency + start
        return b"".join([states.astype("<u4").tobytes(), *(step.tobytes() for step in reversed(words))])


class Decoder:
    """Reads what an Encoder wrote, given the same models and contexts.

    Raises:
        ValueError: from the constructor, `get` or `finish`, for bytes that no Encoder writes.
    """

    def __init__(self, data: memoryview | bytes, lanes: int):
        if len(data) < 4 * lanes or len(data) % 2:
            raise ValueError(f"{len(data)} bytes of coded images; expected an even number, at least {4 * lanes}")
        self.states = np.frombuffer(data, "<u4", lanes).astype(np.int64)
        self.words = np.frombuffer(data, "<u2", offset=4 * lanes)
        self.at = 0
        if self.states.min() < LOW:
            raise ValueError("a state of the entropy coder is below 2^16")

    def get(self, model: Model, lanes: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        """The next symbol, int64 [n], of each of `lanes` (int [n], ascending), in its context; the model learns."""
        frequencies, starts = model.frequencies()
        state = self.states[lanes]
        slot = state & ((1 << BITS) - 1)
        # The starts of all contexts in one ascending row: the symbol is the last that starts at or before the slot.
        row = (starts + (np.arange(len(starts)) << BITS)[:, None]).ravel()
        symbols = np.searchsorted(row, slot + (contexts << BITS), side="right") - 1 - contexts * model.alphabet
        state = frequencies[contexts, symbols] * (state >> BITS) + slot - starts[contexts, symbols]
        empty = state < LOW
        words = self.words[self.at : self.at + int(empty.sum())]
        if len(words) < empty.sum():
            raise ValueError("the coded images end too early")
        self.at += len(words)
        state[empty] = (state[empty] << 16) | words
        self.states[lanes] = state
        model.learn(contexts, symbols)
        return symbols

    def finish(self) -> None:
        """Raises ValueError unless every byte has been used and every lane is back where its encoder began."""
        if self.at != len(self.words) or (self.states != LOW).any():
            raise ValueError("the coded images do not end where they should")

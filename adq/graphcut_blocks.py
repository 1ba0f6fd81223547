"""Blocks of rows that together are the whole, wherever they are: what the greedy asks of them."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from adq.graphcut_block import Block
from adq.graphcut_messages import Answer, Bound, Candidates, Near, Request


class BlockLost(RuntimeError):
    """A block was lost, and all were made anew without the rows that were taken. The next pass tells them the sums."""


class Blocks(Protocol):
    """Blocks of rows that together are the whole; each call goes to all of them, side by side where they are apart."""

    def sums(self) -> list[tuple[np.ndarray, int]]: ...
    def sums_of(self, indices: np.ndarray) -> list[np.ndarray]: ...
    def refresh(self, request: Request, taken: Sequence[Sequence[int]]) -> list[Answer]: ...
    def candidates(self, numbers: Sequence[int], horizon: int) -> list[Candidates]: ...
    def follow(
        self, picked: np.ndarray, picks: int, taken: Sequence[Sequence[int]], horizon: int, limit: int
    ) -> list[tuple[Bound, Answer | None]]: ...
    def verify(self, picks: np.ndarray) -> list[np.ndarray]: ...
    def best_of_near(self, thresholds: Sequence[float], weight: float, direction: np.ndarray) -> list[Near | None]: ...


class LocalBlocks:
    """Blocks of this process."""

    def __init__(self, blocks: Sequence[Block]):
        self.blocks = blocks

    def sums(self) -> list[tuple[np.ndarray, int]]:
        return [block.sum() for block in self.blocks]

    def sums_of(self, indices: np.ndarray) -> list[np.ndarray]:
        return [block.sum_of(indices) for block in self.blocks]

    def refresh(self, request: Request, taken: Sequence[Sequence[int]]) -> list[Answer]:
        return [block.refresh(request, mine) for block, mine in zip(self.blocks, taken, strict=True)]

    def candidates(self, numbers: Sequence[int], horizon: int) -> list[Candidates]:
        return [block.candidates(number, horizon) for block, number in zip(self.blocks, numbers, strict=True)]

    def follow(
        self, picked: np.ndarray, picks: int, taken: Sequence[Sequence[int]], horizon: int, limit: int
    ) -> list[tuple[Bound, Answer | None]]:
        return [
            block.follow(picked, picks, mine, horizon, limit) for block, mine in zip(self.blocks, taken, strict=True)
        ]

    def verify(self, picks: np.ndarray) -> list[np.ndarray]:
        return [block.verify(picks) for block in self.blocks]

    def best_of_near(self, thresholds: Sequence[float], weight: float, direction: np.ndarray) -> list[Near | None]:
        return [block.best_of_near(t, weight, direction) for block, t in zip(self.blocks, thresholds, strict=True)]

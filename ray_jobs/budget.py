"""Budgets in bytes: how they are written, and how many images of a method fit into one."""

import re
from collections.abc import Callable
from decimal import Decimal

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}
CLOSE = 0.005  # of the budget that may be left over


class DoesNotFit(ValueError):
    """A budget that holds not even the smallest set."""


def parse_bytes(text: str) -> int:
    """3MB, 300kB or 300000 as bytes; a kB is 1,000 of them. Raises ValueError."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kMG]?B)?\s*", text)
    found = round(Decimal(match[1]) * UNITS[match[2] or "B"]) if match else 0
    if found < 1:
        raise ValueError(f"a budget of {text!r}: expected bytes such as 3MB, 300kB or 300000")
    return found


def as_budget(budget: int) -> str:
    """A budget as people write it: as short as can be, and no two alike; `parse_bytes` reads it back."""
    unit = next((unit for unit in reversed(UNITS) if budget >= UNITS[unit]), "B")
    whole, rest = divmod(budget, UNITS[unit])
    digits = f"{rest:0{len(str(UNITS[unit])) - 1}d}".rstrip("0") if rest else ""
    return f"{whole}.{digits} {unit}" if digits else f"{whole} {unit}"


def parse_budgets(text: str) -> list[int]:
    """Budgets separated by commas, smallest first. Raises ValueError."""
    found = sorted({parse_bytes(part) for part in text.split(",") if part.strip()})
    if not found:
        raise ValueError("--budgets: give at least one, such as 300kB,1MB,3MB")
    return found


def images_that_fit(
    budget: int, most: int, bytes_of: Callable[[int], int], least: int = 1, close: float = CLOSE, first: int = 0
) -> int:
    """How many images fit.

    Args:
        most: images that there are. bytes_of: the payload of so many images, which grows with their number, nearly in proportion.
        least: images below which there is no set, such as one a class. close: share of the budget that may be left over; 0: not
            one image more fits. first: the number to begin with, where it can be guessed: a good one saves calls.

    Raises:
        DoesNotFit: not even `least` images do; says what they take.
    """
    known, least = {0: 0}, min(least, most)
    low, high = least - 1, most + 1  # low fits or is too few, high does not fit or is one too many
    guess = first or 16 * least
    while high - low > 1:
        guess = min(max(guess, low + 1), high - 1)
        known[guess] = bytes_of(guess)
        low, high = (guess, high) if known[guess] <= budget else (low, guess)
        if low >= least and budget - known[low] <= close * budget:
            break
        # A little below, so that the answer is approached from the side that fits.
        guess = _next(budget * (1 - close / 4), low, high, most, known)
    if low < least:
        raise DoesNotFit(f"{least:,} images take {known[least]:,} bytes: more than the budget of {budget:,}")
    return low


def _next(budget: float, low: int, high: int, most: int, known: dict[int, int]) -> int:
    """Along the line through the two sizes that lie nearest to the budget."""
    one, other = sorted(known, key=lambda count: (abs(known[count] - budget), count))[:2]
    slope = (known[other] - known[one]) / (other - one)
    return round(one + (budget - known[one]) / slope if slope > 0 else (low + min(high, most)) / 2)

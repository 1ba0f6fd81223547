"""The exam of a masked autoencoder: images that it is not trained on, which of their patches they lose, and how it fills them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from adq.fill import fill
from adq.images import UndecodableImage
from adq.mae import MAE, patches_to_mask
from adq.mae_training import masked_error, random_masks
from adq.patches import grid
from adq.randomness import seed_of, torch_generator
from adq.reconstruction import BATCH, psnr, reconstruct
from adq.shards import read_ranges
from ray_jobs.members import image_members
from ray_jobs.shard_reader import Encoded, ShardReader

if TYPE_CHECKING:  # what only the driver needs is not loaded by the workers
    from matplotlib.figure import Figure

SERIES = "curve/"  # before the names of what is measured in the course of a run; its last value has the name alone
HELD_OUT = 20  # one image of so many
TESTED = 2000  # held-out images, at most, that are reconstructed
DROPPED = 0.25  # share of ADQ's patches that a held-out image loses, theta
SHOWN = 6  # images of the figure


def held_out(keys: list[str]) -> np.ndarray:
    """Which images are not trained on, bool [N]: one of about twenty, by a hash of the key alone; one at least."""
    hashes = np.array([seed_of(0, "mae held out", key) for key in keys], dtype=np.uint64)
    chosen = hashes % HELD_OUT == 0
    if not chosen.any():
        chosen[hashes.argmin()] = True
    return chosen


class Rest:
    """A reader of the shards' images without those that are held out, for a stream."""

    def __init__(self, reader: ShardReader, out: np.ndarray):
        self.reader, self.out = reader, out
        self.threads, self.labels = reader.threads, reader.labels[~out]
        self.decode, self.decoded, self.batch_labels = reader.decode, reader.decoded, reader.batch_labels

    @cached_property
    def positions(self) -> dict[str, np.ndarray]:
        return {shard: rows[~self.out[rows]] for shard, rows in self.reader.positions.items()}

    def encoded(self, shard: str, first: int = 0, last: int | None = None) -> Iterator[Encoded]:
        wanted = (sample for sample in self.reader.encoded(shard) if not self.out[sample.position])
        return islice(wanted, first, last)


@dataclass(frozen=True)
class Exam:
    """Held-out images and the patches that they lose: pixels uint8 [n, S, S, 3], known bool [n, S, S]."""

    pixels: Tensor
    known: Tensor

    def score(self, model: MAE, device: str) -> dict[str, float]:
        """The training's loss, and the PSNR on the dropped pixels."""
        with torch.no_grad():
            errors = [
                masked_error(model, pixels.permute(0, 3, 1, 2).to(device), known.to(device)).sum().item()
                for pixels, known in zip(self.pixels.split(BATCH), self.known.split(BATCH), strict=True)
            ]
        painted = reconstruct(model, self.pixels, self.known, device)
        return {
            f"{SERIES}held_out_loss": sum(errors) / len(self.pixels),
            f"{SERIES}psnr": psnr(painted, self.pixels, ~self.known),
        }

    def fills(self) -> dict[str, float]:
        """The PSNR of what needs no network."""
        return {
            f"{SERIES}psnr_{filler}": psnr(fill(self.pixels, self.known, filler), self.pixels, ~self.known)
            for filler in ("mean", "harmonic")
        }


def opened_exam(reader: ShardReader, out: np.ndarray, leave_out: bool) -> Exam:
    """The exam with the held-out images, `out` bool [N], or with TESTED of them at most, evenly spread.

    Raises:
        ValueError: none of them can be decoded, or one cannot and `leave_out` is not set.
    """
    rows = np.flatnonzero(out)
    images = _read(reader, rows[:: -(-len(rows) // TESTED)], leave_out)
    if not images:
        raise ValueError("none of the held-out images can be decoded; mend them, or leave them out of the shards")
    side = reader.transform.crop
    block = grid(side, side).side
    masks = [
        random_masks(1, (side // block) ** 2, DROPPED, torch_generator(0, "dropped", reader.keys[row]))
        for row in images
    ]
    pixels = torch.stack(list(images.values())).permute(0, 2, 3, 1).contiguous()
    return Exam(pixels, patches_to_mask(torch.cat(masks), block))


def _read(reader: ShardReader, rows: np.ndarray, leave_out: bool) -> dict[int, Tensor]:
    """Images uint8 [3, S, S] by their row of the index; nothing else of the shards is read."""
    members, shards = image_members(reader.index), reader.index.table()["shard"].to_numpy()[rows]
    found: dict[int, Tensor | UndecodableImage] = {}
    for shard in np.unique(shards):
        mine = rows[shards == shard].tolist()
        ranges = [(int(members.offsets[row]), int(members.image_bytes[row])) for row in mine]
        for row, data in zip(mine, read_ranges(reader.index.data, shard, ranges), strict=True):
            found[row] = reader.decode(Encoded(row, data))
    failed = {row: image for row, image in found.items() if not isinstance(image, Tensor)}
    if not leave_out:
        reader.check(failed)
    return {row: found[row] for row in sorted(found.keys() - failed.keys())}


def picture(model: MAE, exam: Exam, scores: dict[str, float], device: str) -> "Figure":
    """A few held-out images, a column each: as they are, without the dropped patches, and filled in two ways."""
    from ray_jobs.palette_sheet import enlargement, most_columns, sheet, tile

    pixels, known = exam.pixels[:SHOWN], exam.known[:SHOWN]
    rows = {
        "original": pixels,
        f"{DROPPED:.0%} dropped": torch.where(known[..., None], pixels, 128).to(torch.uint8),
        "harmonic": fill(pixels, known, "harmonic"),
        "this network": reconstruct(model, pixels, known, device),
    }
    labels, arrays = list(rows), [images.numpy() for images in rows.values()]
    columns = min(len(pixels), most_columns(arrays[0], labels))
    factor = enlargement(arrays[0], columns, labels)
    tiles = [[tile(images, None, None, number, factor) for number in range(columns)] for images in arrays]
    title = (
        f"Dropped patches: PSNR {scores[f'{SERIES}psnr']:.2f} dB, harmonic {scores[f'{SERIES}psnr_harmonic']:.2f}, "
        f"mean {scores[f'{SERIES}psnr_mean']:.2f}"
    )
    return sheet(tiles, labels, title)

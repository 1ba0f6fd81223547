"""What an image is stored as: `--encode`. A chain of steps, of which each is optional, in this order:

    resize:S            the shorter side to S pixels, where it is longer (bicubic with antialiasing)
    patches:THETA       THETA per cent of the patches are dropped, those of the least saliency; see adq/patches.py. `patches` alone
                        is patches:25, the paper's theta
    jpeg:Q | webp:Q     stored with this quality, from 1 to 100
    palette:K           stored in K colours, by k-means from median cut

joined by "+", such as resize:64+webp:50; or `original`: the bytes as they are.
"""

import io
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image

from adq import patches
from adq.file_heads import SOI, split
from adq.images import RESAMPLING, decode
from adq.patch_files import DHT, JPEG_420, ROOM, plain_head, segments, tables_of
from palette.export import png_bytes
from palette.quantize import kmeans

CODECS = {"jpeg": (1, 100), "webp": (1, 100), "palette": (2, 256)}
ORDER = ("resize", "patches", *CODECS)
LARGEST_SIDE = 8192
THETA = 25  # per cent, where none is given
HELD = 1 << 22  # pixels whose palettes are found together: k-means takes up to 100 bytes of memory a pixel
LONGEST = {"jpeg": 65500, "webp": 16383}  # pixels of a side that libjpeg and libwebp write
EXTENSIONS = {"jpeg": "jpg", "webp": "webp", "palette": "png"}
SMALL_HEAD = 64  # bytes: that of a WebP or PNG
NOTES = (0xE1, 0xED, 0xFE)  # segments of a JPEG that tell of its picture: EXIF or XMP, IPTC, comments
NOTE = 128  # bytes of such a segment, up to which it may be its writer's name, the same in many files


@dataclass(frozen=True)
class Encoding:
    """A chain; 0 and "" are steps that it does not have."""

    resize: int = 0  # pixels
    patches: int = 0  # per cent
    codec: str = ""
    level: int = 0  # quality, or colours

    def __post_init__(self):
        low, high = CODECS.get(self.codec, (0, 0))
        if not low <= self.level <= high:
            raise ValueError(f"{self.codec}:{self.level}: expected {self.codec}:{low} to {high}")
        if not 0 <= self.patches < 100:
            raise ValueError(f"patches:{self.patches}: expected 1 to 99 per cent of the patches")
        if not 0 <= self.resize <= LARGEST_SIDE:
            raise ValueError(f"resize:{self.resize}: expected a side of 1 to {LARGEST_SIDE} pixels")
        if self.resize and not self.codec:
            raise ValueError(f"resize:{self.resize}: say how it is stored then, such as resize:{self.resize}+webp:75")
        if self.patches and self.codec == "palette":
            raise ValueError("patches and palette do not go together: kept patches are stored as JPEG or WebP")

    @classmethod
    def parse(cls, text: str) -> "Encoding":
        """Raises ValueError: says which step is wrong and what is known."""
        if text.strip() == "original":
            return cls()
        found: dict[str, int] = {}
        for step in text.split("+"):
            given = f"patches:{THETA}" if step.strip() == "patches" else step
            match = re.fullmatch(r"\s*([a-z]+):([0-9]{1,4})\s*", given)
            if not match or match[1] not in ORDER or int(match[2]) == 0:
                raise ValueError(
                    f"--encode {text}: {step.strip()!r} is none of original, resize:PIXELS, patches or patches:PERCENT, "
                    "jpeg:QUALITY, webp:QUALITY, palette:COLOURS, joined by +"
                )
            found[match[1]] = int(match[2])
        codecs = [name for name in CODECS if name in found]
        if len(found) < len(text.split("+")) or len(codecs) > 1 or sorted(found, key=ORDER.index) != list(found):
            raise ValueError(f"--encode {text}: expected each step once, one codec, in the order of {', '.join(ORDER)}")
        codec = codecs[0] if codecs else ""
        return cls(found.get("resize", 0), found.get("patches", 0), codec, found.get(codec, 0))

    @property
    def extensions(self) -> tuple[str, ...]:
        """Those of the files that it makes; a file that is kept keeps its own."""
        return ("patches",) * (self.patches > 0) + ((EXTENSIONS[self.codec],) if self.codec else ())

    def __str__(self) -> str:
        steps = [f"{name}:{value}" for name, value in (("resize", self.resize), ("patches", self.patches)) if value]
        return "+".join(steps + ([f"{self.codec}:{self.level}"] if self.codec else [])) or "original"


ORIGINAL = Encoding()


@dataclass(frozen=True)
class Encoded:
    """An image as it is stored."""

    extension: str
    data: bytes
    gained: bool = True  # False: the file as it was costs no more, or the codec has no room for it, and it is kept


def encode(
    files: Sequence[tuple[str, bytes]], encoding: Encoding, saliency: Sequence[np.ndarray] | None = None
) -> list[Encoded]:
    """Store images in another way.

    No image sees another. Where the file as it was costs no more (see `costs_less`), it is kept, and so is one of more pixels a
    side than the codec can store. Other images that become smaller, or palettised, are encoded anew, and only they can grow.

    Args:
        files: (extension, bytes) of each image.
        saliency: of each image's patches, float [rows, columns], where patches are dropped.

    Raises:
        UndecodableImage: a file that is none.
        ValueError: patches without their saliency.
    """
    if encoding == ORIGINAL:
        return [Encoded(extension, data, False) for extension, data in files]
    if encoding.patches and (saliency is None or len(saliency) != len(files)):
        raise ValueError(f"{encoding} needs the saliency of each image's patches")
    if encoding.codec == "palette":
        return _palettised((resized(decode(data), encoding.resize) for _, data in files), encoding.level)
    out = []
    for i, (extension, data) in enumerate(files):
        if encoding.patches:
            out.append(_patched(extension, data, encoding, saliency[i]))
            continue
        image = decode(data)
        wanted = resized(image, encoding.resize)
        made = _lossy(wanted, encoding) if max(wanted.size) <= LONGEST[encoding.codec] else []
        if wanted.size == image.size:
            made = [one for one in made if costs_less(one.data, data)]
        out.append(made[0] if made else Encoded(extension, data, False))
    return out


def costs_less(made: bytes, source: bytes) -> bool:
    """Whether a file takes fewer bytes than the one that it was made of, in `adq.container`, which holds each head once.

    How many files share a head, only the set tells. That of the source is taken for shared, and counts nothing, where it is
    common (`_is_common`); then so does a common one in its place, a JPEG's in that of a JPEG. Any other counts in full. Where
    only some images of a set are stored anew, it may come to hold one common head more for each size, some 600 bytes.
    """
    (before, old), (after, new) = split(source), split(made)
    if not _is_common(before):
        return len(after) + len(new) < len(before) + len(old)
    shared = _is_common(after) and (not after.startswith(SOI) or before.startswith(SOI))
    return len(new) + (0 if shared else len(after)) < len(old)


def _is_common(head: bytes) -> bool:
    """Whether many files have this head: a short one, or that of a JPEG with the Huffman tables of Annex K and no long notes."""
    if not head.startswith(SOI):
        return len(head) <= SMALL_HEAD
    return _huffman_tables(head) <= _annex_k() and all(
        len(body) <= NOTE for marker in NOTES for body in segments(head, marker)
    )


def _huffman_tables(head: bytes) -> set[bytes]:
    """Each with its number, 16 counts and symbols."""
    found = set()
    for body in segments(head, DHT):
        while body:
            size = 17 + sum(body[1:17])
            found.add(body[:size])
            body = body[size:]
    return found


@cache
def _annex_k() -> set[bytes]:
    return _huffman_tables(plain_head(75, JPEG_420))


def resized(image: Image.Image, side: int) -> Image.Image:
    """The image with its shorter side brought to `side` pixels, if that is longer; 0: as it is."""
    size = resized_size(image.size, side)
    return image if size == image.size else image.resize(size, RESAMPLING["bicubic"])


def resized_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(width, height) after `resized`."""
    shorter = min(size)
    if not side or shorter <= side:
        return size
    width, height = (max(side, round(length * side / shorter)) for length in size)
    return width, height


def _lossy(image: Image.Image, encoding: Encoding) -> list[Encoded]:
    """What costs least first, as far as the image alone tells."""
    if encoding.codec == "webp":
        return [Encoded("webp", _file(image, "WEBP", quality=encoding.level, method=6))]
    plain = _file(image, "JPEG", quality=encoding.level)
    if len(plain) >= max(ROOM, 2 * image.width * image.height) - ROOM // 2:
        return [Encoded("jpg", plain)]  # Pillow has no room for more
    # Huffman tables of its own pay where a scan is long: they are no longer what all files share. Of a quality below 95, Pillow
    # would reserve half as much as of its tables.
    tables = [list(table) for table in tables_of(encoding.level, JPEG_420)]
    tuned = _file(image, "JPEG", qtables=tables, optimize=True)
    best = (tuned, plain) if costs_less(tuned, plain) else (plain, tuned)
    return [Encoded("jpg", data) for data in best]


def _patched(extension: str, data: bytes, encoding: Encoding, saliency: np.ndarray) -> Encoded:
    (whole,) = encode([(extension, data)], replace(encoding, patches=0))
    image = decode(data)
    wanted = resized(image, encoding.resize)
    if not patches.fits(wanted.height, wanted.width):
        return whole
    if wanted.size != image.size:
        data = _file(wanted, "PNG", compress_level=1)
    mask = patches.keep_mask(saliency, encoding.patches / 100)
    codec = {"codec": encoding.codec, "quality": encoding.level} if encoding.codec else {}
    made = patches.encode(data, mask, **codec)
    return Encoded("patches", made) if costs_less(made, whole.data) else whole


def _palettised(images: Iterable[Image.Image], colors: int) -> list[Encoded]:
    """Indexed PNGs, images of one size together."""
    out: dict[int, Encoded] = {}
    for group in _of_one_size(images):
        palettes, indices = kmeans(np.stack(list(group.values())), colors)
        for i, palette, index in zip(group, palettes, indices, strict=True):
            out[i] = Encoded("png", png_bytes(palette, index))
    return [out[i] for i in range(len(out))]


def _of_one_size(images: Iterable[Image.Image]) -> Iterator[dict[int, np.ndarray]]:
    """uint8 [H, W, 3] of images by their numbers, those of one size together; at most `HELD` pixels, or one image, are held."""
    groups: dict[tuple[int, int], dict[int, np.ndarray]] = defaultdict(dict)
    pixels = 0
    for i, image in enumerate(images):
        pixels += image.width * image.height
        if groups and pixels > HELD:
            yield from groups.values()
            groups.clear()
            pixels = image.width * image.height
        groups[image.size][i] = np.asarray(image)
    yield from groups.values()


def _file(image: Image.Image, kind: str, **settings: object) -> bytes:
    image, buffer = image.copy(), io.BytesIO()
    image.info = {}  # comments and profiles of the source, which Pillow would write, and no reader here asks for
    image.save(buffer, kind, **settings)
    return buffer.getvalue()

"""The one image decoder: whatever a file holds becomes RGB, the same way for extraction and for training."""

import io
import warnings
from types import ModuleType

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from adq.file_heads import SOI

# Only raster formats that Pillow decodes by itself: some of its other plugins start programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "patches")
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
SIDEWAYS = {UPRIGHT[number] for number in (5, 6, 7, 8)}
MOST_RESIZED = 1 << 24  # pixels that an image has when it is resized and not yet cut
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class UndecodableImage(ValueError):
    """The bytes are no image that can be read in full."""


def decode(data: bytes) -> Image.Image:
    """RGB from the bytes of an image file, or of a container of patches (`adq.patches`).

    CMYK, grey, palette and 16-bit images (65,535 is white) are converted, transparency is laid on white, EXIF rotation is applied.
    The gaps between patches are filled by `adq.fill.DEFAULT_FILLER`.

    Returns:
        A Pillow image of mode RGB.

    Raises:
        UndecodableImage: truncated, unknown or oversized data, with Pillow's reason; pixels of floating point or 32 bits.
    """
    try:
        if _patches().is_patches(data):
            return _completed(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            image.load()
            return _rgb(_upright(image), image.format)
    except UndecodableImage:
        raise
    except Exception as error:  # Pillow's plugins raise whatever their parsers do: struct.error, KeyError, zlib.error
        raise UndecodableImage(_reason(error)) from error


def _reason(error: Exception) -> str:
    """The same text for the same bytes: Pillow puts an address of memory into one of its messages."""
    if isinstance(error, UnidentifiedImageError):
        return f"no image in a format that is read ({', '.join(FORMATS)})"
    return f"{type(error).__name__}: {error}"


def _patches() -> ModuleType:
    from adq import patches  # which decodes its own sources here

    return patches


def _completed(data: bytes) -> Image.Image:
    import torch  # takes seconds to load, and only these files need it

    from adq.fill import fill

    kept = _patches().decode(data)
    whole = fill(torch.from_numpy(kept.pixels)[None], torch.from_numpy(kept.known)[None])
    return Image.fromarray(whole[0].numpy())


def _turned(image: Image.Image) -> Image.Transpose | None:
    return UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it writes the EXIF block anew, and fails on a damaged one though the pixels are sound.
    turn = _turned(image)
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image, kind: str | None) -> Image.Image:
    """Args: kind: the file's format."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or (
        image.mode == "I" and kind != "TIFF"
    ):  # Pillow gives 16-bit PNG or PPM as one of these
        return Image.fromarray((np.asarray(image, dtype=np.float64) / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UndecodableImage(
            f"{'floating-point' if image.mode == 'F' else '32-bit or signed'} pixels, of which nobody knows what is white: "
            "store 8 or 16 bits without a sign"
        )
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def header_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels from the header alone, without decoding. Raises UndecodableImage."""
    try:
        if _patches().is_patches(data):
            return _patches().header_size(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return image.size
    except Exception as error:
        raise UndecodableImage(_reason(error)) from error


def upright_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels of what `decode` makes: of JPEGs and patches from the header, else by decoding.

    Raises UndecodableImage.
    """
    if _patches().is_patches(data):
        return header_size(data)
    if not data.startswith(SOI):  # where others tell of a rotation, may be behind their pixels
        return decode(data).size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return image.size[::-1] if _turned(image) in SIDEWAYS else image.size
    except Exception as error:
        raise UndecodableImage(_reason(error)) from error


def cut(
    image: Image.Image, box: tuple[float, float, float, float], side: int, interpolation: str = "bilinear"
) -> np.ndarray:
    """A box of an image, resized to a square, antialiased.

    Args:
        box: top, left, height and width as shares of the image's height and width.

    Returns:
        uint8 [3, side, side], contiguous.
    """
    top, left, height, width = box
    corners = (
        left * image.width,
        top * image.height,
        min((left + width) * image.width, image.width),
        min((top + height) * image.height, image.height),
    )
    image = image.resize((side, side), RESAMPLING[interpolation], box=corners)
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


def resize_and_crop(image: Image.Image, resize: int, crop: int, interpolation: str = "bilinear") -> np.ndarray:
    """Shorter side to `resize`, then the central `crop` x `crop` square.

    Returns:
        uint8 [3, crop, crop], contiguous.
    """
    width, height = image.size
    if min(width, height) != resize:
        scale = resize / min(width, height)
        size = (max(resize, round(width * scale)), max(resize, round(height * scale)))
        if size[0] * size[1] > MOST_RESIZED:  # of an image much longer than wide, only what is cut out is made
            corners = [(s - crop) // 2 * o / s for s, o in zip(size, image.size, strict=True)]
            ends = [c + crop * o / s for c, s, o in zip(corners, size, image.size, strict=True)]
            image = image.resize((crop, crop), RESAMPLING[interpolation], box=(*corners, *ends))
        else:
            image = image.resize(size, RESAMPLING[interpolation])
    left, top = (image.width - crop) // 2, (image.height - crop) // 2
    if (image.width, image.height) != (crop, crop):
        image = image.crop((left, top, left + crop, top + crop))
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))

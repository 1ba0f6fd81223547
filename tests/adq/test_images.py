"""The image decoder: every kind of file becomes the RGB that a person sees, and nothing else gets past it."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from adq import images, patches
from adq.fill import DEFAULT_FILLER, fill
from adq.images import EXTENSIONS, UndecodableImage, decode, header_size, resize_and_crop, upright_size


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def noise(height: int = 24, width: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_lossless_rgb_keeps_every_pixel(kind):
    np.testing.assert_array_equal(pixels(saved(Image.fromarray(noise()), kind)), noise())


def test_a_cmyk_jpeg_has_its_own_colours():
    # Full cyan and half black: red is gone, green and blue are halved.
    data = saved(Image.new("CMYK", (16, 16), (255, 0, 0, 128)), "JPEG", quality=100)
    assert b"Adobe" in data[:64]  # libjpeg marks CMYK as Adobe's, whose values are inverted
    np.testing.assert_allclose(pixels(data)[8, 8].astype(int), (0, 127, 127), atol=3)


def test_an_adobe_ycck_jpeg_has_its_own_colours():
    # Adobe's own files hold YCCK (transform byte 2) of inverted inks: 55 of each of C, M, Y is stored as 200, which as YCC
    # is luma 255 - 200 = 55 without chroma. On a screen it is grey 255 - 55 = 200. Pillow writes 255 - ink: hence the inks below.
    data = saved(Image.new("CMYK", (16, 16), (255 - 55, 255 - 128, 255 - 128, 0)), "JPEG", quality=100)
    at = data.index(b"Adobe") + 11
    np.testing.assert_allclose(pixels(data[:at] + b"\x02" + data[at + 1 :])[8, 8].astype(int), 200, atol=3)


def test_grey_becomes_three_equal_channels():
    grey = noise()[:, :, 0]
    np.testing.assert_array_equal(pixels(saved(Image.fromarray(grey), "PNG")), np.repeat(grey[:, :, None], 3, axis=2))


def test_black_and_white_of_one_bit():
    image = Image.new("1", (4, 4), 0)
    image.putpixel((1, 2), 1)
    out = pixels(saved(image, "PNG"))
    assert out[2, 1].tolist() == [255, 255, 255] and out.sum() == 3 * 255


def palette() -> Image.Image:
    image = Image.new("P", (4, 2))
    image.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 0])
    image.putdata([0, 1, 1, 0, 1, 0, 0, 1])
    return image


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palette_is_looked_up(kind):
    out = pixels(saved(palette(), kind))
    assert out[0].tolist() == [[10, 20, 30], [200, 100, 50], [200, 100, 50], [10, 20, 30]]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(kind):
    out = pixels(saved(palette(), kind, transparency=0))
    assert out[0, 0].tolist() == [255, 255, 255] and out[0, 1].tolist() == [200, 100, 50]


def test_a_palette_with_alpha_for_each_entry_is_laid_on_white():
    out = pixels(saved(palette(), "PNG", transparency=bytes([255, 102])))
    assert out[0, 0].tolist() == [10, 20, 30]
    np.testing.assert_allclose(out[0, 1].astype(int), [255 - 0.4 * (255 - c) for c in (200, 100, 50)], atol=1)


@pytest.mark.parametrize(("mode", "colour"), [("RGBA", (200, 100, 50, 102)), ("LA", (200, 102))])
def test_alpha_is_laid_on_white(mode, colour):
    out = pixels(saved(Image.new(mode, (3, 3), colour), "PNG"))
    opaque = colour[:-1] * (3 // len(colour[:-1]))
    np.testing.assert_allclose(out[1, 1].astype(int), [255 - 0.4 * (255 - c) for c in opaque], atol=1)


def test_one_transparent_colour_of_an_rgb_png_is_white():
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    assert pixels(saved(image, "PNG", transparency=(1, 2, 3)))[0].tolist() == [[255, 255, 255], [9, 9, 9]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_keeps_its_levels(kind):
    # Pillow's own conversion would clip everything above 255 to white.
    levels = np.arange(256, dtype=np.uint16)[None] * 257
    out = pixels(saved(Image.fromarray(levels), kind))
    np.testing.assert_array_equal(out[0], np.repeat(np.arange(256)[:, None], 3, axis=1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_images_are_as_bright_as_each_other(kind):
    dark, brighter = (pixels(saved(Image.fromarray(np.full((2, 2), level, np.uint16)), kind)) for level in (255, 514))
    assert dark.max() == 1 and brighter.max() == 2, "not white because no level is above 255"


@pytest.mark.parametrize("level", [0.5, np.nan, 300.0])
def test_floating_point_has_no_white(level):
    with pytest.raises(
        UndecodableImage, match=r"^floating-point pixels, of which nobody knows what is white: store 8 or 16 bits"
    ):
        decode(saved(Image.fromarray(np.full((2, 2), level, np.float32)), "TIFF"))
    with pytest.raises(UndecodableImage, match=r"^32-bit or signed pixels"):
        decode(saved(Image.fromarray(np.full((2, 2), 70_000, np.int32)), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_shows_the_image_upright(orientation):
    # What a viewer does for each value of the EXIF standard, on arrays: the stored rows and columns, turned upright.
    upright = {
        1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
        8: lambda x: np.rot90(x),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x112] = orientation
    np.testing.assert_array_equal(
        pixels(saved(Image.fromarray(noise()), "PNG", exif=exif)), upright[orientation](noise())
    )
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        data = saved(Image.fromarray(noise()), kind, exif=exif)
        assert upright_size(data) == decode(data).size == upright[orientation](noise()).shape[1::-1]


def test_a_rotated_jpeg_and_its_header():
    exif = Image.Exif()
    exif[0x112] = 6
    data = saved(Image.new("RGB", (40, 16)), "JPEG", exif=exif)
    assert decode(data).size == (16, 40)
    assert min(header_size(data)) == 16
    assert upright_size(data[: data.index(b"\xff\xda")]) == (16, 40), "no pixels are needed"


def test_a_damaged_exif_block_does_not_cost_the_image():
    exif = Image.Exif()
    exif[0x112], exif[0x10E] = 6, "description"
    data = saved(Image.fromarray(noise()), "JPEG", exif=exif)
    start = data.index(b"Exif")
    length = int.from_bytes(data[start - 2 : start], "big")
    for at in range(start + 6, start - 2 + length):
        for value in (0, 255):
            damaged = data[:at] + bytes([value]) + data[at + 1 :]
            assert sorted(decode(damaged).size) == [20, 24] and upright_size(damaged) == decode(damaged).size


def test_the_name_of_a_file_says_nothing():
    # ImageNet's n02105855_2933.JPEG is a PNG: the decoder sees bytes only, and takes each format by its own marks.
    for kind in ("PNG", "WEBP", "GIF", "BMP"):
        assert decode(saved(Image.fromarray(noise()), kind)).size == (20, 24)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_a_truncated_file_is_undecodable(kind, share):
    data = saved(Image.fromarray(noise(64, 64)), kind)
    with pytest.raises(UndecodableImage):
        decode(data[: int(len(data) * share)])


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"not an image", bytes(range(256)) * 8, b"\x89PNG\r\n\x1a\n"])
def test_garbage_is_undecodable_with_a_reason(data):
    for reader in (decode, header_size, upright_size):
        with pytest.raises(UndecodableImage, match=r"\w+: .+|no image in a format that is read \(JPEG, ") as told:
            reader(data)
        assert " at 0x" not in str(told.value), "an address of memory: the reasons are stored, and must repeat"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
def test_damage_anywhere_gives_an_image_or_undecodable_and_no_other_error(kind):
    exif = Image.Exif()
    exif[0x112], exif[0x10E] = 6, "description"
    options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}
    data = saved(Image.fromarray(noise(8, 8)), kind, **options)
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data) if rng.random() < 0.5 else min(64, len(data)), rng.integers(1, 5)):
            damaged[at] = rng.choice([0, 255, rng.integers(256)])
        for read in (decode, header_size, upright_size):
            try:
                read(bytes(damaged))
            except UndecodableImage:
                refused += 1
    assert refused


@pytest.mark.filterwarnings("error")
def test_a_decompression_bomb_is_refused_without_unpacking_it():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
    data += png_chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + png_chunk(b"IEND", b"")
    for read in (decode, header_size, upright_size):
        with pytest.raises(UndecodableImage, match="DecompressionBomb"):
            read(data)


def test_formats_whose_plugins_start_programs_are_refused():
    postscript = saved(Image.fromarray(noise()), "EPS")
    assert Image.open(io.BytesIO(postscript)).format == "EPS"  # Pillow by itself would hand it to Ghostscript
    with pytest.raises(UndecodableImage):
        decode(postscript)


def test_header_size_is_width_and_height_and_needs_no_pixels():
    data = saved(Image.fromarray(noise(48, 20)), "JPEG")
    assert header_size(data) == (20, 48)
    assert header_size(data[: data.index(b"\xff\xda")]) == (20, 48)


@pytest.mark.parametrize("size", [(700, 5), (5, 700), (701, 9)])
def test_what_is_cut_of_a_thin_image_is_what_is_cut_of_it_whole(size, monkeypatch):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    whole = resize_and_crop(image, 36, 32)
    monkeypatch.setattr(images, "MOST_RESIZED", 0)
    assert np.abs(resize_and_crop(image, 36, 32).astype(int) - whole).max() <= 1


def test_a_thin_image_takes_no_more_memory_than_it_has_pixels(monkeypatch):
    image, made = Image.new("RGB", (60_000, 1)), []
    real = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda *a, **k: made.append(real(*a, **k)) or made[-1])
    assert resize_and_crop(image, 256, 224).shape == (3, 224, 224)
    assert [one.size for one in made] == [(224, 224)]


def test_resize_and_crop_is_the_identity_at_native_size():
    image = Image.fromarray(noise(32, 32))
    out = resize_and_crop(image, 32, 32)
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out.transpose(1, 2, 0), noise(32, 32))


@pytest.mark.parametrize("size", [(40, 100), (100, 40), (17, 17), (33, 400)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resize_and_crop_gives_the_square_asked_for(size, interpolation):
    out = resize_and_crop(Image.new("RGB", size, (7, 8, 9)), 36, 32, interpolation)
    assert out.shape == (3, 32, 32) and out.flags.c_contiguous
    assert [np.unique(channel).tolist() for channel in out] == [[7], [8], [9]]  # no border is filled in


def test_the_crop_is_central():
    image = np.zeros((32, 96, 3), dtype=np.uint8)
    image[:, 32:64] = 255
    assert resize_and_crop(Image.fromarray(image), 32, 32).min() == 255


def test_patches_are_shown_whole_with_their_gaps_filled():
    # A ramp, of which a row of patches is dropped: the default filler continues it.
    ramp = np.repeat(np.linspace(40, 200, 112).astype(np.uint8)[:, None, None], 3, axis=2).repeat(100, axis=1)
    mask = np.ones((7, 7), dtype=bool)
    mask[3] = False
    data = patches.encode(saved(Image.fromarray(ramp), "PNG"), mask)
    assert header_size(data) == upright_size(data) == (100, 112)
    shown, kept = pixels(data), patches.decode(data)
    np.testing.assert_array_equal(shown[kept.known], kept.pixels[kept.known])
    assert (~kept.known).sum() == 16 * 100
    assert np.abs(shown.astype(int) - ramp).max() <= 6
    expected = fill(torch.from_numpy(kept.pixels)[None], torch.from_numpy(kept.known)[None], DEFAULT_FILLER)[0]
    np.testing.assert_array_equal(shown, expected.numpy())
    assert "patches" in EXTENSIONS


def test_damaged_patches_are_undecodable():
    data = patches.encode(saved(Image.fromarray(noise(32, 32)), "JPEG"), np.ones((4, 4), dtype=bool))
    for damaged in (data[:-1], data[:6], data[:40] + b"\0" + data[41:]):
        with pytest.raises(UndecodableImage, match=r"ValueError: .*container of patches"):
            decode(damaged)
    with pytest.raises(UndecodableImage, match="cut short"):
        header_size(data[:6])

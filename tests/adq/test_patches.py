"""The container of patches: kept patches as they were, few bytes, and nothing malformed taken."""

import binascii
import io
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from adq import images
from adq.file_heads import split
from adq.patch_layout import columns_of
from adq.patches import Grid, decode, encode, grid, header_size, keep_mask
from adq.randomness import numpy_generator
from tests.adq.patch_cases import fidelity, random_mask, saved, smooth, whole
from tests.conftest import DATA, cifar10_shard


@pytest.fixture(scope="module")
def imagenette() -> list[bytes]:
    path = DATA / "imagenette" / "imagenette-train-000000.tar"
    if not path.exists():
        pytest.skip(f"no real images at {path}")
    with tarfile.open(path) as tar:
        return [tar.extractfile(m).read() for m in tar.getmembers()[:60] if m.name.endswith(".jpg")][:12]


@pytest.fixture(scope="module")
def cifar10() -> list[bytes]:
    with tarfile.open(cifar10_shard(0)) as tar:
        return [tar.extractfile(m).read() for m in tar.getmembers()[:200] if m.name.endswith(".jpg")][:60]


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((32, 32), Grid(8, 4, 4)), ((224, 224), Grid(16, 14, 14)), ((95, 200), Grid(8, 12, 25)), ((96, 96), Grid(16, 6, 6)),
        ((375, 500), Grid(32, 12, 16)), ((500, 375), Grid(32, 16, 12)), ((1, 1), Grid(8, 1, 1)), ((448, 460), Grid(32, 14, 15)),
    ],
)  # fmt: skip
def test_the_grid_has_about_14_patches_on_the_shorter_side(sides, expected):
    assert grid(*sides) == expected


@pytest.mark.parametrize("sides", [(0, 5), (5, -1), (16385, 1), (8193, 8192)])
def test_images_too_large_for_a_grid_are_named(sides):
    with pytest.raises(ValueError, match="pixels: expected sides"):
        grid(*sides)


def test_the_least_salient_patches_are_dropped_and_ties_go_by_index():
    saliency = np.array([[0.5, 0.1, 0.1], [0.1, 0.9, 0.0]])
    dropped = {theta: np.flatnonzero(~keep_mask(saliency, theta)).tolist() for theta in (0, 0.3, 0.34, 0.5, 0.67, 0.99)}
    assert dropped == {0: [], 0.3: [5], 0.34: [1, 5], 0.5: [1, 2, 5], 0.67: [1, 2, 3, 5], 0.99: [0, 1, 2, 3, 5]}
    assert np.count_nonzero(keep_mask(np.zeros((10, 10)), 0.29)) == 71  # 0.29 * 100 is below 29 in floating point
    assert keep_mask(np.zeros((1, 1)), 0.999).tolist() == [[True]]


def test_saliency_and_theta_are_checked():
    with pytest.raises(ValueError, match="NaN"):
        keep_mask(np.array([[1.0, np.nan]]), 0.5)
    for theta in (-0.1, 1, np.nan):
        with pytest.raises(ValueError, match="theta"):
            keep_mask(np.ones((2, 2)), theta)
    with pytest.raises(ValueError, match="expected \\[rows, columns\\]"):
        keep_mask(np.ones(4), 0.5)


@pytest.mark.data
def test_real_224_px_jpegs_lose_next_to_nothing_but_their_dropped_patches(imagenette):
    before = sum(len(split(data)[1]) for data in imagenette)  # scans alone
    for data in imagenette:
        assert fidelity(data, whole(224, 224)) > 55 and fidelity(data, random_mask(224, 224)) > 45
    sizes = [[len(encode(data, random_mask(224, 224, theta))) for data in imagenette] for theta in (0, 0.25, 0.5)]
    assert sum(sizes[0]) < 1.01 * before and sum(sizes[1]) < 0.8 * before and sum(sizes[2]) < 0.55 * before
    assert all(size < len(data) for size, data in zip(sizes[0], imagenette, strict=True))


@pytest.mark.data
def test_real_32_px_jpegs_keep_their_coefficients(cifar10):
    # In place and of whole macroblocks, so the scan of all patches is the source's own, byte for byte.
    same = [encode(data, whole(32, 32))[14:-2] == split(data)[1] for data in cifar10]
    assert np.mean(same) > 0.7  # of the others a few coefficients, which the clipping of colours has moved
    mask = np.ones((4, 4), dtype=bool)
    mask[0, 1] = mask[2, 3] = mask[3, 0] = mask[1, 1] = False
    assert np.median([fidelity(data, mask) for data in cifar10]) > 70
    assert all(len(encode(data, mask)) < len(split(data)[1]) for data in cifar10)


@pytest.mark.parametrize("sides", [(128, 160), (201, 155), (70, 61), (17, 50), (1, 1)])
@pytest.mark.parametrize(
    ("options", "kind", "least"),
    [
        ({"subsampling": 2}, 4, 40), ({"subsampling": 1}, 3, 40), ({"subsampling": 0}, 2, 50), ({"mode": "L"}, 1, 50),
        ({"subsampling": 2, "progressive": True}, 4, 40), ({"subsampling": 2, "quality": 97}, 4, 42),
        ({"subsampling": 2, "qtables": [[9] * 64, [12] * 64]}, 4, 40), ({"subsampling": 2, "qtables": [[9] * 64]}, 4, 40),
    ],
)  # fmt: skip
def test_jpegs_of_every_plain_kind_keep_their_tables_and_pixels(sides, options, kind, least):
    data = saved(smooth(*sides), **options)
    made = encode(data, random_mask(*sides))
    assert made[10] & 7 == kind and (made[11] == 0) == ("qtables" in options)
    assert fidelity(data, random_mask(*sides)) > least
    assert len(encode(data, whole(*sides))) < len(data)


def test_chroma_is_not_mixed_across_tiles_that_were_no_neighbours():
    # Patches of flat colours as different as can be: next to others in the picture, each must stay what it was.
    colours = np.array([[255, 0, 0], [0, 0, 255], [0, 255, 0], [255, 255, 0]], dtype=np.uint8)
    pixels = colours[numpy_generator(0, "colours").integers(0, 4, (14, 14))].repeat(16, axis=0).repeat(16, axis=1)
    mask = np.zeros((14, 14), dtype=bool)
    mask[::2, ::2] = True  # no kept patch beside another one
    data = saved(pixels, quality=95, subsampling=2)
    found = decode(encode(data, mask))
    centre = found.pixels.reshape(14, 16, 14, 16, 3)[::2, 7, ::2, 7].astype(int)
    spread = found.pixels.reshape(14, 16, 14, 16, 3)[::2, :, ::2].astype(int) - centre[:, None, :, None]
    assert np.abs(spread).max() <= 3


def test_the_picture_inside_is_read_by_its_description():
    """A reader of grey JPEG and WebP containers, written after the page alone: 5 x 5 patches of 16 pixels, 22 of them kept."""
    pixels, mask = smooth(96, 96)[:80, :80], np.ones((5, 5), dtype=bool)
    pixels = np.pad(pixels, ((0, 16), (0, 16), (0, 0)), "edge")
    mask = np.pad(mask, ((0, 1), (0, 1)))
    mask[0, 1] = mask[3, 3] = mask[4, 4] = False
    numbers = np.flatnonzero(mask)
    for data, picture_mode in ((saved(pixels, mode="L", quality=80), "JPEG"), (saved(pixels, "PNG"), "WEBP")):
        made = encode(data, mask)
        magic, version, height, width, side, kind, quality = struct.unpack_from("<4sBHHBBB", made)
        assert (magic, version, height, width, 8 * side) == (b"\x89TSP", 1, 96, 96, 16)
        assert made[12:17] == np.packbits(mask).tobytes() and made[-2:] == binascii.crc_hqx(made[:-2], 0).to_bytes(
            2, "little"
        )
        body = made[17:-2]
        rows, columns = 4, 6  # of 5, 6 and 7 columns, 5 leave 3 places empty, 6 leave 2, 7 leave 6
        blank = saved(
            np.zeros((16 * rows, 16 * columns, 3), np.uint8), picture_mode, "L" if kind & 7 == 1 else "RGB", quality=80
        )
        if kind == 0:
            chunk = body[:3] + blank[23:30] + body[3:]
            file = (
                b"RIFF"
                + struct.pack("<I", 12 + len(chunk))
                + b"WEBPVP8 "
                + struct.pack("<I", len(chunk))
                + chunk
                + b"\0"
            )
        else:
            assert kind == 1 and quality == 80, "the tables of Annex K do for so few patches"
            file = blank[: blank.index(b"\xff\xda") + 10] + body + b"\xff\xd9"
        tiles = np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).reshape(rows, 16, columns, 16, 3).swapaxes(1, 2)
        found, flat = decode(made).pixels, tiles.reshape(-1, 16, 16, 3)
        for place, number in enumerate(numbers):
            row, column = divmod(number, 6)
            np.testing.assert_array_equal(found[16 * row : 16 * row + 16, 16 * column : 16 * column + 16], flat[place])


@pytest.mark.parametrize("orientation", [3, 6])
def test_what_is_no_plain_jpeg_becomes_webp_as_the_decoder_shows_it(orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    pixels = smooth(100, 130)
    rgb = saved(pixels, quality=95, subsampling=0, keep_rgb=True)
    assert Image.open(io.BytesIO(rgb)).layer[0][0] == ord("R")
    for data in (
        saved(pixels, exif=exif), saved(pixels, mode="CMYK"), saved(pixels, "PNG"), saved(pixels, "WEBP", lossless=True),
        saved(pixels, "PNG", "P"), saved(pixels, "GIF"), rgb, saved(pixels, qtables=[[5] * 64, [6] * 64, [7] * 64]),
    ):  # fmt: skip
        height, width = np.asarray(images.decode(data)).shape[:2]
        made = encode(data, random_mask(height, width))
        assert made[10:12] == b"\0\0" and header_size(made) == (width, height)
        assert fidelity(data, random_mask(height, width)) > 20  # of dithered colours; 30 and more of the others


def test_a_quality_and_a_codec_can_be_asked_for():
    data, mask = saved(smooth(128, 96), "PNG"), random_mask(128, 96)
    jpeg = [len(encode(data, mask, quality=quality)) for quality in (20, 60, 95)]
    webp = [len(encode(data, mask, quality=quality, codec="webp")) for quality in (20, 60, 95)]
    assert jpeg == sorted(jpeg) and webp == sorted(webp)
    assert encode(data, mask, quality=60)[10] & 7 == 4 and encode(data, mask, quality=60)[11] == 60
    assert fidelity(data, mask, quality=95) > 40 and fidelity(data, mask, quality=95, codec="webp") > 32
    assert encode(data, mask) == encode(data, mask) == encode(data, mask, quality=90, codec="webp")
    for options in ({"quality": 0}, {"quality": 101}, {"codec": "png"}):
        with pytest.raises(ValueError, match="expected jpeg or webp"):
            encode(data, mask, **options)


def test_own_huffman_tables_are_used_where_they_pay():
    large = saved(smooth(320, 320), quality=95)
    assert encode(large, whole(320, 320))[10] == 4 + 8
    assert fidelity(large, random_mask(320, 320)) > 45
    noise = numpy_generator(0, "noise").integers(0, 256, (160, 160, 3), dtype=np.uint8)  # more than Pillow has room for
    assert fidelity(saved(noise, quality=100, subsampling=0), whole(160, 160)) > 50


def test_a_mask_that_does_not_fit_is_named():
    data = saved(smooth(32, 32))
    for mask in (np.ones((4, 5), bool), np.ones((4, 4)), np.zeros((4, 4), bool), np.ones(16, bool)):
        with pytest.raises(ValueError, match=r"expected bool \[4, 4\] for 32 x 32 pixels"):
            encode(data, mask)
    with pytest.raises(images.UndecodableImage):
        encode(data[:300], np.ones((4, 4), bool))


def test_pillow_smooths_chroma_as_the_container_expects():
    """4:2:0 samples 0 and 255 side by side: a quarter of the next sample, as libjpeg-turbo does."""
    chroma = np.zeros((16, 32, 3), dtype=np.uint8)
    chroma[..., 0], chroma[..., 1:], chroma[:, 16:, 1] = 128, 128, 160
    buffer = io.BytesIO()
    Image.fromarray(chroma, "YCbCr").save(buffer, "JPEG", qtables=[[1] * 64], subsampling=2)
    image = Image.open(buffer)
    assert JpegImagePlugin.get_sampling(image) == 2
    image.draft("YCbCr", image.size)
    assert np.asarray(image)[8, 14:18, 1].tolist() == [128, 136, 152, 160]


def test_the_columns_of_the_picture_leave_few_places_empty():
    for tiles in range(1, 400):
        columns = columns_of(tiles)
        rows = -(-tiles // columns)
        assert rows <= columns <= 1.5 * (tiles**0.5 + 1) and rows * columns - tiles <= 6
    assert [columns_of(tiles) for tiles in (1, 2, 3, 4, 12, 147, 196)] == [1, 2, 3, 2, 4, 15, 14]

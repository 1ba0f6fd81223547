"""Encodings say what they are, keep what they say they keep, and never cost more than the file that they came from."""

import io
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from adq import container, patches
from adq.images import UndecodableImage, decode
from palette.encodings import ORIGINAL, Encoded, Encoding, _of_one_size, costs_less, encode, resized
from tests.conftest import DATA, cifar10_shard


def images(path: str, count: int) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        names = [name for name in tar.getnames() if name.endswith(".jpg")][:count]
        return [("jpg", tar.extractfile(name).read()) for name in names]


@pytest.fixture(scope="module")
def small() -> list[tuple[str, bytes]]:
    return images(cifar10_shard(0), 30)


@pytest.fixture(scope="module")
def large() -> list[tuple[str, bytes]]:
    path = DATA / "imagenette" / "imagenette-train-000000.tar"
    if not path.exists():
        pytest.skip(f"no real images at {path}")
    return images(str(path), 4)


def saliency(files, seed=0) -> list[np.ndarray]:
    generator, found = np.random.default_rng(seed), []
    for _, data in files:
        cut = patches.grid(*reversed(decode(data).size))
        found.append(generator.random((cut.rows, cut.columns), dtype=np.float32))
    return found


@pytest.mark.parametrize(
    "text",
    ["original", "jpeg:75", "webp:5", "palette:16", "patches:25", "resize:64+webp:50", "resize:96+patches:25+jpeg:80"],
)
def test_a_chain_is_read_and_told_in_the_same_words(text):
    assert str(Encoding.parse(text)) == text
    assert Encoding.parse(f" {text.replace('+', ' + ')} ") == Encoding.parse(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "none of"), ("gif:5", "none of"), ("jpeg", "none of"), ("webp:0", "none of"), ("jpeg:101", "1 to 100"),
        ("palette:1", "2 to 256"), ("jpeg:5+webp:5", "one codec"), ("webp:50+resize:64", "order"), ("webp:5+webp:6", "once"),
        ("resize:64", "how it is stored"), ("patches:25+palette:8", "do not go together"), ("patches:100", "1 to 99"),
        ("original+webp:50", "none of"),
    ],
)  # fmt: skip
def test_other_chains_are_refused_with_the_reason(text, why):
    with pytest.raises(ValueError, match=why):
        Encoding.parse(text)


def test_patches_alone_are_those_of_the_paper_s_theta():
    assert Encoding.parse("patches") == Encoding.parse("patches:25")
    assert str(Encoding.parse("resize:64+ patches +webp:50")) == "resize:64+patches:25+webp:50"


@pytest.mark.parametrize("chain", ["original", "patches:50", "webp:5", "palette:4", "resize:16+patches:25+jpeg:20"])
def test_files_that_are_made_have_the_extensions_that_were_said(small, chain):
    encoding = Encoding.parse(chain)
    seen = encode(small, Encoding.parse("resize:16+webp:90")) if encoding.resize else [Encoded(*file) for file in small]
    made = encode(small, encoding, saliency([(one.extension, one.data) for one in seen]))
    assert {one.extension for one in made if one.gained} <= set(encoding.extensions)
    assert bool(encoding.extensions) == any(one.gained for one in made)


def test_original_files_stay_as_they_are(small):
    assert [(one.extension, one.data) for one in encode(small, ORIGINAL)] == small


@pytest.mark.parametrize("chain", ["jpeg:30", "webp:20", "jpeg:100", "webp:100", "patches:25", "patches:50+webp:30"])
def test_no_image_grows_and_lower_quality_costs_less(small, large, chain):
    for files in (small, large):
        made = encode(files, Encoding.parse(chain), saliency(files))
        for (extension, before), after in zip(files, made, strict=True):
            assert after.gained == costs_less(after.data, before)
            assert decode(after.data).size == decode(before).size
            assert after.gained == (after.data != before)
            if not after.gained:
                assert (after.extension, after.data) == (extension, before)


def packed(files: list[tuple[str, bytes]] | list[Encoded]) -> int:
    """Bytes of the container."""
    files = [(one.extension, one.data) if isinstance(one, Encoded) else one for one in files]
    return len(container.pack([data for _, data in files], [e for e, _ in files], np.zeros(len(files), int), ["a"]))


SAME, DIFFERENT = ((200, 200),) * 10, tuple((160 + 8 * n, 200) for n in range(10))


def textures(kind: str, sizes=SAME, **settings) -> list[tuple[str, bytes]]:
    """Squares of 8 pixels in random colours, for which Huffman tables of their own save more than they cost."""
    files, extension = [], {"JPEG": "jpg", "WEBP": "webp"}[kind]
    for number, (width, height) in enumerate(sizes):
        squares = np.random.default_rng(number).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        files.append((extension, _file(Image.fromarray(squares.repeat(8, 0).repeat(8, 1)), kind, **settings)))
    return files


@pytest.mark.parametrize(
    ("kind", "sizes", "settings"),
    [
        ("JPEG", SAME, {}), ("JPEG", DIFFERENT, {}), ("JPEG", SAME, {"optimize": True}), ("JPEG", DIFFERENT, {"optimize": True}),
        ("JPEG", SAME, {"progressive": True}), ("JPEG", SAME, {"comment": b"made by a program"}), ("WEBP", SAME, {}),
        ("WEBP", DIFFERENT, {}),
    ],
    ids=["plain", "plain, sizes", "tuned", "tuned, sizes", "progressive", "named writer", "webp", "webp, sizes"],
)  # fmt: skip
@pytest.mark.parametrize("chain", ["jpeg:66", "jpeg:48", "webp:66", "webp:40", "resize:200+jpeg:66"])
def test_no_set_grows_in_its_container(kind, sizes, settings, chain):
    files = textures(kind, sizes, quality=50, **settings)
    assert packed(encode(files, Encoding.parse(chain))) <= packed(files)


def test_tables_and_notes_that_no_other_file_has_are_the_file_s_own():
    tuned = textures("JPEG", quality=50, optimize=True)
    assert all(one.gained for one in encode(tuned, Encoding.parse("jpeg:40")))
    exif = b"Exif\0\0" + np.random.default_rng(0).bytes(9000)
    noted = textures("JPEG", quality=50, exif=exif)
    for chain in ("jpeg:50", "webp:90"):  # the same picture, or a better one, without the notes
        made = encode(noted, Encoding.parse(chain))
        assert all(one.gained and len(one.data) < len(data) for one, (_, data) in zip(made, noted, strict=True))


@pytest.mark.parametrize("chain", ["jpeg:95", "webp:95", "patches:5+jpeg:95", "patches:5+webp:95"])
def test_only_what_a_resize_makes_smaller_may_grow(chain):
    (file,) = textures("JPEG", ((200, 208),), quality=20)
    for side, grows in ((0, False), (200, False), (199, True)):
        encoding = replace(Encoding.parse(chain), resize=side)
        wanted = resized(decode(file[1]), side)
        (made,) = encode([file], encoding, saliency([("png", _png(wanted))]))
        assert made.gained == grows == (len(made.data) > len(file[1])) and decode(made.data).size == wanted.size


@pytest.mark.parametrize("chain", ["resize:64+webp:90", "resize:64+jpeg:95", "resize:32+patches:25+jpeg:95"])
def test_images_that_are_small_enough_grow_as_little(small, chain):
    made = encode(small, Encoding.parse(chain), saliency(small))
    assert packed(made) <= packed(small)
    assert any(not one.gained for one in made)


@pytest.mark.parametrize(("kind", "chain"), [("JPEG", "jpeg:40"), ("JPEG", "resize:96+jpeg:40"), ("WEBP", "webp:5")])
def test_what_the_source_says_of_itself_is_not_stored_again(kind, chain):
    ((extension, data),) = textures(kind, ((200, 200),), quality=75)
    noted = {"comment": b"x" * 3000} if kind == "JPEG" else {"icc_profile": b"x" * 3000}
    ((_, with_notes),) = textures(kind, ((200, 200),), quality=75, **noted)
    assert len(with_notes) > len(data) + 3000
    without, made = (encode([(extension, file)], Encoding.parse(chain)) for file in (data, with_notes))
    assert made == without and made[0].gained


@pytest.mark.parametrize(
    ("size", "chain", "stored"),
    [
        ((16384, 8), "webp:5", "png"), ((16383, 8), "webp:5", "webp"), ((65501, 2), "jpeg:5", "png"), ((16385, 8), "jpeg:5", "jpg"),
        ((16385, 8), "patches:50", "png"), ((16385, 8), "patches:50+jpeg:5", "jpg"), ((32768, 16), "resize:8+webp:5", "png"),
        ((32766, 16), "resize:8+webp:5", "webp"),
    ],
)  # fmt: skip
def test_images_with_sides_that_a_codec_cannot_store_stay_as_they_are(size, chain, stored):
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    data = _png(Image.fromarray(noise))
    (one,) = encode([("png", data)], Encoding.parse(chain), [np.zeros((0, 0))])
    assert one.extension == stored and (one.data == data) == (not one.gained) == (stored == "png")


def test_quality_orders_bytes_and_errors(large):
    def cost(chain: str) -> tuple[int, float]:
        made = encode(large, Encoding.parse(chain))
        errors = [
            np.square(np.subtract(decode(a.data), decode(b), dtype=float)).mean()
            for a, (_, b) in zip(made, large, strict=True)
        ]
        return sum(len(one.data) for one in made), float(np.mean(errors))

    for codec in ("jpeg", "webp"):
        (few, coarse), (many, fine) = cost(f"{codec}:10"), cost(f"{codec}:60")
        assert few < many and coarse > fine > 0


def test_resized_images_have_the_wanted_shorter_side_and_small_ones_are_not_enlarged(small, large):
    tall = Image.fromarray(np.zeros((300, 100, 3), np.uint8))
    buffer = io.BytesIO()
    tall.save(buffer, "PNG")
    made = encode([*large, ("png", buffer.getvalue())], Encoding.parse("resize:64+webp:80"))
    assert [min(decode(one.data).size) for one in made] == [64] * 5
    assert decode(made[-1].data).size == (64, 192)
    assert [decode(one.data).size for one in encode(small, Encoding.parse("resize:64+webp:80"))] == [(32, 32)] * 30


def test_palettised_images_have_at_most_so_many_colours_each_by_itself(small):
    made = encode(small, Encoding.parse("palette:6"))
    for one in made:
        assert one.extension == "png" and Image.open(io.BytesIO(one.data)).mode == "P"
        assert len(np.unique(np.asarray(decode(one.data)).reshape(-1, 3), axis=0)) <= 6
    assert encode(small[3:4], Encoding.parse("palette:6")) == made[3:4]


def test_images_whose_palettes_are_found_together_have_so_many_pixels(small, large, monkeypatch):
    """Decoded images can take hundreds of times the memory of their files."""
    wanted = encode([*small, *large], Encoding.parse("palette:4"))
    images = [Image.new("RGB", size) for size in ((60, 50), (40, 50), (60, 50), (90, 100), (60, 50))]
    for held, groups in ((8000, [[0, 2], [1], [3], [4]]), (5000, [[0], [1], [2], [3], [4]])):
        monkeypatch.setattr("palette.encodings.HELD", held)
        assert [list(group) for group in _of_one_size(images)] == groups
    assert encode([*small, *large], Encoding.parse("palette:4")) == wanted


def test_dropped_patches_are_those_of_least_saliency_and_the_others_are_kept(large):
    scores = saliency(large)
    for (_, before), one, score in zip(large, encode(large, Encoding.parse("patches:25"), scores), scores, strict=True):
        assert one.extension == "patches"
        found = patches.decode(one.data)
        assert (~found.mask).sum() == int(0.25 * score.size)
        assert score[~found.mask].max() < score[found.mask].min()
        error = np.subtract(found.pixels, np.asarray(decode(before)), dtype=float)[found.known]
        assert np.square(error).mean() < 2  # the quantisation is that of the source


def test_patches_after_a_resize_are_those_of_the_resized_image(large):
    resized = [
        ("png", _png(image))
        for image in (decode(one.data) for one in encode(large, Encoding.parse("resize:96+webp:100")))
    ]
    made = encode(large, Encoding.parse("resize:96+patches:25+webp:60"), saliency(resized))
    assert {decode(one.data).size for one in made} <= {(96, 96)}
    assert {one.extension for one in made} == {"patches"}
    with pytest.raises(ValueError):
        encode(large, Encoding.parse("resize:96+patches:25+webp:60"), saliency(large))  # the grid of other images


def _png(image: Image.Image) -> bytes:
    return _file(image, "PNG")


def _file(image: Image.Image, kind: str, **settings) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


@pytest.mark.parametrize("quality", [90, 92, 94, 95, 98, 100])
def test_the_worst_noise_is_stored_at_any_quality(quality):
    """A file with own Huffman tables must fit into what Pillow reserves for it."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 2, (400, 400, 3), dtype=np.uint8) * 255)
    (made,) = encode([("bmp", _file(noise, "BMP"))], Encoding.parse(f"jpeg:{quality}"))
    assert made.gained and decode(made.data).size == (400, 400)
    plain = _file(noise, "JPEG", quality=quality)
    assert len(made.data) < len(plain) or quality >= 98


@pytest.mark.parametrize("quality", [1, 30, 75, 94])
def test_own_huffman_tables_are_those_of_the_quality(large, quality):
    image = decode(large[0][1])
    image.info = {}
    (made,) = encode([("bmp", _file(image, "BMP"))], Encoding.parse(f"jpeg:{quality}"))
    assert made.data in [_file(image, "JPEG", quality=quality, optimize=tuned) for tuned in (False, True)]


def test_bytes_that_are_no_image_and_patches_without_saliency_are_refused(small):
    with pytest.raises(UndecodableImage):
        encode([("jpg", small[0][1][:200])], Encoding.parse("webp:50"))
    with pytest.raises(ValueError, match="saliency"):
        encode(small, Encoding.parse("patches:25"))

"""Encodings say what they are, keep what they say they keep, and never cost more than the file that they came from."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from adq import patches
from adq.images import UndecodableImage, decode
from palette.encodings import ORIGINAL, Encoding, encode, own_bytes
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


def test_original_files_stay_as_they_are(small):
    assert [(one.extension, one.data) for one in encode(small, ORIGINAL)] == small


@pytest.mark.parametrize("chain", ["jpeg:30", "webp:20", "jpeg:100", "webp:100", "patches:25", "patches:50+webp:30"])
def test_no_image_grows_and_lower_quality_costs_less(small, large, chain):
    for files in (small, large):
        made = encode(files, Encoding.parse(chain), saliency(files))
        for (extension, before), after in zip(files, made, strict=True):
            assert own_bytes(after.data) <= own_bytes(before)
            assert decode(after.data).size == decode(before).size
            assert after.gained == (after.data != before)
            if not after.gained:
                assert (after.extension, after.data) == (extension, before)


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
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_noise_at_the_highest_quality_is_stored():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8))
    assert decode(encode([("png", _png(noise))], Encoding.parse("jpeg:100"))[0].data).size == (400, 400)


def test_bytes_that_are_no_image_and_patches_without_saliency_are_refused(small):
    with pytest.raises(UndecodableImage):
        encode([("jpg", small[0][1][:200])], Encoding.parse("webp:50"))
    with pytest.raises(ValueError, match="saliency"):
        encode(small, Encoding.parse("patches:25"))

"""The drawn data set: repeatable, varied within a class, and learnable without being trivial."""

import io
import re
from functools import cache

import numpy as np
import pytest
from PIL import Image

from adq.images import decode
from adq.synthetic import CLASSES, FAMILIES, FIGURES, PATTERNS, encoded, image, samples

TRAIN, TEST = 60, 30


@cache
def drawn(split: str, per_class: int) -> np.ndarray:
    """float64 [class, image, 32, 32, 3] in [0, 1]."""
    return np.stack([[image(label, i, 0, split) for i in range(per_class)] for label in range(len(CLASSES))]) / 255


def nearest_mean_accuracy(describe) -> float:
    """Top-1 of the nearest class mean, on the test images, of a description [..., 32, 32, 3] -> [..., d]."""
    means = describe(drawn("train", TRAIN)).mean(1)
    test = describe(drawn("test", TEST))
    guesses = ((test[:, :, None] - means) ** 2).sum(-1).argmin(-1)
    return float((guesses == np.arange(len(CLASSES))[:, None]).mean())


def pixels(images):
    return images.reshape(*images.shape[:-3], -1)


def colour(images):
    """Shares of twelve hues, each pixel weighted by its saturation. No trace of where anything is."""
    chroma = images @ np.exp(2j * np.pi * np.arange(3) / 3)
    sector = np.floor(np.angle(chroma) / (2 * np.pi) * 12).astype(int) % 12
    weight = np.abs(chroma) ** 2
    shares = np.stack([(weight * (sector == k)).sum((-1, -2)) for k in range(12)], -1)
    return shares / shares.sum(-1, keepdims=True)


def figure(images):
    """How far each 4 x 4 block is from the border's colour: the silhouette, without hue and fine pattern."""
    border = np.concatenate([images[..., 0, :, :], images[..., -1, :, :]], -2).mean(-2)
    blocks = images.reshape(*images.shape[:-3], 8, 4, 8, 4, 3).mean((-4, -2))
    distance = np.sqrt(((blocks - border[..., None, None, :]) ** 2).sum(-1))
    return (distance / distance.mean((-1, -2), keepdims=True)).reshape(*distance.shape[:-2], -1)


def texture(images):
    """The grey image's power spectrum: no colour, no position."""
    grey = images.mean(-1)
    power = np.log1p(np.abs(np.fft.rfft2(grey - grey.mean((-1, -2), keepdims=True))))
    return power.reshape(*power.shape[:-2], -1)


def test_families_are_complete():
    for name, looks in FAMILIES.items():
        shares = [look.share for look in looks]
        assert sum(shares) == pytest.approx(1) and shares == sorted(shares, reverse=True) and len(set(shares)) > 1
        assert name.split("-")[-1] == looks[0].figure
    looks = [look for family in FAMILIES.values() for look in family]
    assert {look.figure for look in looks} == set(FIGURES) and {look.pattern for look in looks} == set(PATTERNS)
    owners = {(look.figure, look.pattern, name) for name, family in FAMILIES.items() for look in family}
    assert len(owners) == len({owner[:2] for owner in owners}), "a figure and its pattern together name one class"


def test_an_image_depends_on_its_arguments_alone():
    first = image(3, 7)
    for label in (9, 0, 3):
        image(label, 8)
    assert first.dtype == np.uint8 and first.shape == (32, 32, 3)
    assert (image(3, 7) == first).all() and encoded(3, 7) == encoded(3, 7)
    for other in (image(3, 7, split="test"), image(3, 7, seed=1), image(3, 8), image(4, 7)):
        assert np.abs(other.astype(int) - first).mean() > 5


def test_samples_are_images_in_a_mixed_order():
    few, more = list(samples(4, "train", ext="png")), list(samples(9, "train", ext="png"))
    keys = [sample.key for sample in more]
    assert len(set(keys)) == len(keys) == 9 * len(CLASSES)
    for key, ext, data, label in more:
        name, index = re.fullmatch(r"([a-z-]+)_(\d{5})", key).groups()
        assert (name, ext) == (CLASSES[label], "png")
        np.testing.assert_array_equal(np.asarray(decode(data)), image(label, int(index)))
    assert len({sample.label for sample in more[:20]}) >= 5
    kept = {sample.key for sample in few}
    assert [sample for sample in more if sample.key in kept] == few
    assert keys != [sample.key for sample in samples(9, "test")]


def test_jpeg_is_near_the_image():
    for label in range(len(CLASSES)):
        data = encoded(label, 0)
        with Image.open(io.BytesIO(data)) as opened:
            assert (opened.format, opened.mode, opened.size) == ("JPEG", "RGB", (32, 32))
        assert np.abs(np.asarray(decode(data)).astype(int) - image(label, 0)).mean() < 8


def test_every_class_has_variety():
    for images in pixels(drawn("train", TRAIN)):
        squares = ((images[:, None] - images) ** 2).mean(-1)
        nearest = np.sqrt((squares + np.eye(TRAIN)).min(1))
        assert nearest.min() > 0.05 and np.median(nearest) > 0.1


@pytest.mark.parametrize("describe", [colour, figure, texture])
def test_classes_differ_in(describe):
    assert 0.2 < nearest_mean_accuracy(describe) < 0.8


def test_pixels_alone_do_not_tell_the_classes():
    assert 0.1 < nearest_mean_accuracy(pixels) < 0.5


def test_what_does_not_exist_is_refused():
    for arguments in ((len(CLASSES), 0), (-1, 0), (0, -1), (0, 0, 0, "val")):
        with pytest.raises(ValueError, match="label"):
            image(*arguments)
    with pytest.raises(ValueError, match="extension 'gif'"):
        encoded(0, 0, ext="gif")

"""Figures show the pixels, palettes and numbers that they are given, and refuse what does not fit together."""

import io
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from palette.codec import encode
from palette.quantize import median_cut, paint, psnr
from ray_jobs import palette_figures as figures
from ray_jobs import palette_sheet


def noise(count, side=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def palettised(count, colors=4, side=8, seed=0):
    palettes, indices = median_cut(noise(count, side, seed), colors)
    return paint(palettes, indices), palettes, indices


def drawn(figure):
    """The figure as it is saved: uint8 [height, width, 3]."""
    data = io.BytesIO()
    figure.savefig(data, format="png")
    image = np.asarray(Image.open(data).convert("RGB"))
    assert image.std() > 1, "an empty figure"
    assert 400 <= image.shape[1] <= 1400
    return image


def colours(image):
    return {tuple(map(int, colour)) for colour in np.unique(image.reshape(-1, 3), axis=0)}


def sheet(figure):
    (axes,) = figure.axes
    return axes, axes.images[0].get_array()


# One image, by hand: colour 2 in 40 of 64 pixels, colour 0 in 20, colour 3 in 4, colour 1 in none.
HAND = np.repeat([2, 0, 3], [40, 20, 4]).astype(np.uint8).reshape(1, 8, 8)
PALETTE = np.array([[[255, 0, 0], [1, 2, 3], [0, 255, 0], [0, 0, 255]]], dtype=np.uint8)


def test_the_strip_is_the_palette_in_order_of_use_as_wide_as_its_share():
    order, widths = palette_sheet.strip_widths(np.array([20, 0, 40, 4]), 67)
    assert order.tolist() == [2, 0, 3]
    # A pixel each, and 64 more by their shares of 40, 20 and 4 in 64.
    assert widths.tolist() == [41, 21, 5]
    _, canvas = sheet(figures.distilled_grid(paint(PALETTE, HAND), PALETTE, HAND, np.zeros(1, dtype=int), ["cat"]))
    strip = canvas[-2]
    inner = strip[1 : 1 + 128]
    starts = np.flatnonzero(np.any(np.diff(inner.astype(int), axis=0, prepend=-1), axis=1))
    assert inner[starts].tolist() == [[0, 255, 0], [255, 0, 0], [0, 0, 255]]
    np.testing.assert_allclose(np.diff([*starts, 128]), 128 * np.array([40, 20, 4]) / 64, atol=1.5)
    assert (1, 2, 3) not in colours(canvas), "a colour that no pixel has"


@pytest.mark.parametrize("width", [1, 3, 50, 300])
def test_strips_have_their_width_and_lose_only_the_rarest(width):
    use = np.random.default_rng(0).integers(0, 100, 64)
    order, widths = palette_sheet.strip_widths(use, width)
    assert widths.sum() == width and widths.min() >= 1
    assert len(order) == min(width, (use > 0).sum())
    assert use[order].min() >= np.delete(use, order).max(initial=0)
    assert (np.diff(use[order]) <= 0).all()


def test_the_saved_figure_has_exactly_the_colours_of_the_image():
    images, palettes, indices = palettised(1, colors=5)
    figure = figures.distilled_grid(images, palettes, indices, np.zeros(1, dtype=int), [""])
    axes, canvas = sheet(figure)
    box = axes.get_window_extent()
    assert (box.width, box.height) == pytest.approx((canvas.shape[1], canvas.shape[0]), abs=1e-6)
    # Text is drawn in greys alone, and whole numbers of pixels leave no mixtures.
    coloured = {c for c in colours(drawn(figure)) if max(c) - min(c) > 2}
    assert coloured == {c for c in colours(images) if max(c) - min(c) > 2}


def test_the_grid_has_a_row_a_class_and_says_how_many_are_shown():
    images, palettes, indices = palettised(25 * 12)
    labels = np.arange(25 * 12) % 25
    names = [f"class {n}" for n in range(30)]
    figure = figures.distilled_grid(images, palettes, indices, labels, names)
    axes, canvas = sheet(figure)
    assert [label.get_text() for label in axes.get_yticklabels()] == names[:20]
    assert "20 of 25 classes, 10 of 12 images each" in figure.get_suptitle()
    drawn(figure)
    side = (canvas.shape[1] + palette_sheet.GAP) // 10 - palette_sheet.GAP - 2  # an image, a frame of 1 pixel and a gap
    # The third image of class 1 is number 51, wherever labels are in their order.
    left = 2 * (side + 2 + palette_sheet.GAP) + 1
    top = (canvas.shape[0] + palette_sheet.GAP) // 20 + 1
    shown = canvas[top : top + side : side // 8, left : left + side : side // 8]
    np.testing.assert_array_equal(shown, images[51])


def test_the_grid_in_full_colour_and_of_classes_with_fewer_images():
    images = noise(4)
    figure = figures.distilled_grid(images, None, None, np.array([3, 0, 3, 3]), ["a", "b", "c", "d"])
    axes, canvas = sheet(figure)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "d"]
    assert figure.get_suptitle() == "Distilled images: 2 classes, 3 images each"
    side = 128 + 2
    assert canvas.shape == (2 * side + palette_sheet.GAP, 3 * side + 2 * palette_sheet.GAP, 3)
    assert (canvas[:side, side:] == 255).all()
    drawn(figure)


@pytest.mark.parametrize("side", [32, 160])
def test_larger_images_fit_the_width(side):
    images, palettes, indices = palettised(10, side=side)
    drawn(figures.distilled_grid(images, palettes, indices, np.zeros(10, dtype=int), ["a class of long name"]))
    drawn(figures.with_and_without({"a run of a rather long name": (images, palettes, indices)}))
    drawn(figures.bit_depths(images[0], (6, 5, 4, 3, 2, 1)))


def test_runs_are_rows_with_their_colours_in_use():
    images, palettes, indices = palettised(40, colors=4)
    few = np.minimum(indices, 1)
    few[0] = 0
    rows = {"all three losses": (images, palettes, indices), "no losses": (paint(palettes, few), palettes, few)}
    figure = figures.with_and_without(rows)
    axes, canvas = sheet(figure)
    labels = [label.get_text().split("\n") for label in axes.get_yticklabels()]
    # 39 images of two colours, one of one.
    assert labels == [["all three losses", "4.0 of 4 used", "at least 4"], ["no losses", "2.0 of 4 used", "at least 1"]]
    assert "same 10 of 40 images" in figure.get_suptitle()
    # Spread evenly: the second that is shown is number 4, in both rows.
    side = (canvas.shape[1] + palette_sheet.GAP) // 10 - palette_sheet.GAP - 2
    left, pitch = side + 2 + palette_sheet.GAP + 1, (canvas.shape[0] + palette_sheet.GAP) // 2
    for row, (shown, _, _) in enumerate(rows.values()):
        part = canvas[row * pitch + 1 :][: side : side // 8, left : left + side : side // 8]
        np.testing.assert_array_equal(part, shown[4])
    drawn(figure)


def test_bit_depths_give_colours_psnr_and_container_bytes():
    image = noise(1, 32)[0]
    figure = figures.bit_depths(image, (6, 1))
    axes, _ = sheet(figure)
    texts = [text.get_text() for text in axes.texts]
    assert texts[0] == "original\n3,072 bytes raw"
    for text, bits, name in ((texts[1], 6, "6 bits"), (texts[2], 1, "1 bit")):
        palettes, indices = median_cut(image[None], 2**bits)
        size = len(encode(palettes, indices, [0], [""]))
        noise_db = psnr(image[None], paint(palettes, indices))[0]
        assert text == f"{name}: {2**bits} colours\n{noise_db:.1f} dB, {size:,} bytes"
    drawn(figure)


def test_bit_depths_without_loss_say_so():
    flat = np.zeros((16, 16, 3), np.uint8)
    flat[:8] = 200
    (axes,) = figures.bit_depths(flat, (3,)).axes
    assert axes.texts[1].get_text().startswith("3 bits: 2 of 8 colours\nno loss, ")


def test_colours_in_use_over_the_steps():
    (axes,) = figures.colors_in_use([50, 100], [3.5, 7.25], [1, 6], 8).axes
    limit, mean, least = axes.get_lines()
    assert set(limit.get_ydata()) == {8}
    assert list(mean.get_ydata()) == [3.5, 7.25] and list(least.get_ydata()) == [1, 6]
    assert "7.2 of 8, and 6 in the poorest" in axes.get_title(loc="left")


@pytest.mark.parametrize("count", [1, 3, 4])
def test_losses_have_an_axis_each(count):
    names = ["loss", "maximum_color", "palette_balance", "something_else"][:count]
    history = {name: np.arange(5.0) + number for number, name in enumerate(names)}
    figure = figures.losses(history, range(5))
    assert len(figure.axes) == count
    for axes, values in zip(figure.axes, history.values(), strict=True):
        np.testing.assert_array_equal(axes.get_lines()[0].get_ydata(), values)
    assert figure.axes[0].get_title(loc="left") == "Matching loss"
    drawn(figure)


def test_a_gap_in_a_loss_draws():
    drawn(figures.losses({"loss": [1.0, np.nan, 2.0]}, [0, 1, 2]))


def test_accuracy_shows_means_intervals_and_full_colour():
    series = {"direct": [(32, 33.0, 0.5), (4, 30.0, 1.5)], "network": [(8, 31.0, np.nan)]}
    figure = figures.accuracy_over_colors(series, (33.5, 0.4))
    (axes,) = figure.axes
    direct, network = axes.containers
    line, _, (bars,) = direct
    assert line.get_ydata().tolist() == [30, 33], "in the order of K"
    np.testing.assert_allclose(line.get_xdata(), [4, 32], rtol=0.1)
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    np.testing.assert_allclose(ends, [[28.5, 31.5], [32.5, 33.5]])
    assert network[0].get_ydata().tolist() == [31]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4", "8", "32"]
    assert axes.get_xscale() == "log"
    assert axes.get_legend().get_texts()[0].get_text() == "full colour: 33.5 ± 0.4"
    (band,) = axes.patches
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((33.1, 33.9))
    drawn(figure)
    drawn(figures.accuracy_over_colors({"one": [(64, 50.0, float("nan"))]}))


def test_what_does_not_fit_is_said():
    images, palettes, indices = palettised(4)
    labels, names = np.zeros(4, dtype=int), ["a"]
    wrong = [
        (lambda: figures.distilled_grid(images.astype(float), palettes, indices, labels, names), "expected a uint8"),
        (lambda: figures.distilled_grid(images, palettes, None, labels, names), "come together"),
        (lambda: figures.distilled_grid(images, palettes[:3], indices, labels, names), r"expected \[4, K, 3\]"),
        (lambda: figures.distilled_grid(images, palettes, indices[:, :4], labels, names), r"expected \(4, 8, 8\)"),
        (lambda: figures.distilled_grid(images, palettes[:, :2], indices, labels, names), "an index is 3"),
        (lambda: figures.distilled_grid(images, palettes, indices, labels[:2], names), "whole numbers"),
        (lambda: figures.distilled_grid(images, palettes, indices, labels + 1, names), "there are 1 classes"),
        (lambda: figures.with_and_without({}), "no runs"),
        (
            lambda: figures.with_and_without({"a": (images, palettes, indices), "b": palettised(3)}),
            "differ in number or size",
        ),
        (lambda: figures.bit_depths(images), r"expected \[B, H, W, 3\]"),
        (lambda: figures.bit_depths(images[0], (9,)), "from 1 to 8"),
        (lambda: figures.colors_in_use([1, 2], [1.0], [1.0, 2.0], 8), "mean"),
        (lambda: figures.colors_in_use([], [], [], 8), "0 steps"),
        (lambda: figures.losses({"loss": [1.0]}, [1, 2]), "loss"),
        (lambda: figures.losses({}, [1, 2]), "none at all"),
        (lambda: figures.accuracy_over_colors({"a": []}), "no accuracies"),
        (lambda: figures.accuracy_over_colors({"a": [(0, 1.0, 1.0)]}), "at least 1"),
    ]
    for call, message in wrong:
        with pytest.raises(ValueError, match=message):
            call()


def test_neither_ray_nor_mlflow_is_needed_and_no_global_state_is_left():
    figures.losses({"loss": [1.0, 2.0]}, [0, 1])
    assert matplotlib._pylab_helpers.Gcf.get_num_fig_managers() == 0
    code = "import sys, ray_jobs.palette_figures; print([m for m in ('ray', 'mlflow') if m in sys.modules])"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr

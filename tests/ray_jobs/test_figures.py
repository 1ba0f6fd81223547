"""Every figure draws, shows the numbers that it is given, and says what is seen."""

import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

from ray_jobs import figures

BINS = np.arange(1, 11)


def scores(m=10):
    random = np.random.default_rng(0)
    return {
        "bin": np.arange(1, m + 1),
        "representativeness": random.random(m),
        "diversity": -10 * random.random(m),
        "representativeness_se": np.full(m, 0.01),
        "diversity_se": np.full(m, 0.5),
        "importance": 2 * random.random(m),
    }


def draw(figure):
    """The figure's size in pixels, and whether anything is drawn."""
    data = io.BytesIO()
    figure.savefig(data, format="png")
    image = np.asarray(Image.open(data).convert("L"))
    assert image.std() > 1, "an empty figure"
    return image.shape[1]


def texts(axes):
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("m", [1, 10, 60])
def test_every_figure_draws_for_few_and_many_bins(m):
    random = np.random.default_rng(0)
    sizes = np.full(m, 100)
    images = {n: [random.integers(0, 255, (32, 32, 3), dtype=np.uint8)] * (n % 4) for n in range(1, min(m, 20) + 1)}
    drawn = [
        figures.bin_scores(scores(m)),
        figures.bin_shares(np.arange(1, m + 1), sizes, sizes // 5, sizes // 10, 0.1),
        figures.bin_grid(images),
        figures.class_counts(random.integers(0, 50, (m, 10))),
        figures.class_counts(random.integers(0, 50, (m, 1000)), range(1, m + 1)),
        figures.loss_curve(range(m * 10), np.exp(-np.arange(m * 10.0)), "A loss"),
    ]
    for figure in drawn:
        width = draw(figure)
        assert 400 <= width <= 1400
        titles = [axes.get_title(loc="left") for axes in figure.axes]
        assert any(titles) or figure.get_suptitle()


def test_figures_leave_no_global_state():
    figures.bin_scores(scores())
    assert matplotlib._pylab_helpers.Gcf.get_num_fig_managers() == 0


def test_degenerate_values_draw():
    table = scores(3) | {"importance": np.zeros(3), "diversity": np.full(3, np.nan)}
    draw(figures.bin_scores(table))
    draw(figures.bin_shares([1, 2], [0, 0], [0, 0], [0, 0], 1.0))
    draw(figures.class_counts(np.zeros((2, 2), dtype=int)))
    draw(figures.loss_curve([0, 1], [np.nan, 1.0], "A loss with a gap"))


def test_shares_are_the_kept_part_of_each_bin_beside_dq():
    quotas = np.array([400, 600] + [500] * 8)
    (axes,) = figures.bin_shares(BINS, [5000] * 10, quotas, [500] * 10, 0.1).axes
    dq, ours = axes.containers
    np.testing.assert_allclose([bar.get_height() for bar in dq], 0.1)
    np.testing.assert_allclose([bar.get_height() for bar in ours], quotas / 5000)
    assert texts(axes) == [str(quota) for quota in quotas]
    # Total variation by hand: (100 + 100) / 5000 / 2.
    assert "2.0% of the choice" in axes.get_title(loc="left")


def test_scores_have_their_errors():
    table = scores()
    top, middle, bottom = figures.bin_scores(table).axes
    for axes, score in ((top, "representativeness"), (middle, "diversity")):
        (line, _, (bars,)) = axes.containers[0]
        np.testing.assert_allclose(line.get_ydata(), table[score])
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_allclose(ends[:, 1] - ends[:, 0], 2 * table[f"{score}_se"])
    np.testing.assert_allclose([bar.get_height() for bar in bottom.patches], table["importance"])


def test_the_grid_has_a_row_a_bin_in_order_and_shows_the_images():
    images = {10: [np.full((8, 8, 3), 10, np.uint8)], 2: [np.full((8, 8, 3), value, np.uint8) for value in (20, 21)]}
    axes = figures.bin_grid(images, {10: "bin 10, 1.2 %"}).axes
    assert [cell.get_ylabel() for cell in axes] == ["bin 2", "", "bin 10, 1.2 %", ""]
    assert [cell.images[0].get_array().max() if cell.images else None for cell in axes] == [20, 21, 10, None]

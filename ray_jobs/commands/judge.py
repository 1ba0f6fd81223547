"""Jobs that say what a set of images is worth: trainings, comparisons, accuracy over bytes."""

import click

from ray_jobs.command_line import command, options
from ray_jobs.compare import run as run_comparison
from ray_jobs.evaluate import Evaluation
from ray_jobs.evaluate import run as run_evaluation
from ray_jobs.frontier import Budgets
from ray_jobs.frontier import run as run_frontier
from ray_jobs.grid import Comparison, Grid
from ray_jobs.options import Backbone, Compute, Data, Place, Selection
from ray_jobs.rank import run as run_ranking


@command()
@click.option(
    "--train", multiple=True, required=True, metavar="SHARDS", help="Shards to train on; patterns as for --data."
)
@click.option("--test", multiple=True, required=True, metavar="SHARDS", help="Held-out shards; each image counts once.")
@options(Evaluation, Data, Compute, Place, without=("data", "skip_corrupt"))
def evaluate(evaluation, reading, compute, place, train, test):
    """Train networks on a data set and test them on another: last-epoch top-1 over seeds."""
    run_evaluation(train, test, evaluation, reading, compute, place)


@command()
@click.option("--test", multiple=True, required=True, metavar="SHARDS", help="Held-out shards; each image counts once.")
@click.option(
    "--out", required=True, metavar="PLACE", help="Folder, s3:// or gs:// for the table, the figures and every run."
)
@options(Comparison, Evaluation, Data, Selection, Backbone, Compute, Place, without=("method", "seed", "permutation"))
def compare(comparison, evaluation, data, selection, backbone, compute, place, test, out):
    """Compare selection methods: networks trained on what each keeps, differences to random and DQ with their intervals."""
    run_comparison(Grid(comparison, evaluation, data, selection, backbone, test, out), compute, place)


@command()
@click.option("--test", multiple=True, required=True, metavar="SHARDS", help="Held-out shards; each image counts once.")
@click.option(
    "--out", required=True, metavar="PLACE", help="Folder, s3:// or gs:// for the table, the figure and every run."
)
@options(
    Budgets, Comparison, Evaluation, Data, Selection, Backbone, Compute, Place,
    without=("keep", "method", "seed", "permutation", "labels"),
)  # fmt: skip
def frontier(budgets, comparison, evaluation, data, selection, backbone, compute, place, test, out):
    """Accuracy over bytes: what a budget buys, for every way to spend it."""
    run_frontier(budgets, Grid(comparison, evaluation, data, selection, backbone, test, out), compute, place)


@command()
@click.option(
    "--distilled", required=True, metavar="SHARDS", help="The distilled set: the --out folder of distill, or shards."
)
@click.option("--test", multiple=True, required=True, metavar="SHARDS", help="Held-out shards; each image counts once.")
@options(Evaluation, Data, Backbone, Compute, Place, without=("skip_corrupt", "graphcut_actors", "embeddings"))
def rank(evaluation, data, backbone, compute, place, distilled, test):
    """DD-Ranking's label- and augmentation-robust scores of a distilled set, at equal bytes instead of equal images.

    With --labels soft, random images get the soft labels of the backbone, trained on all images.
    """
    run_ranking(distilled, data, test, evaluation, backbone, compute, place)

"""Jobs to look around: a demonstration, and what lies in a store."""

import click


@click.command()
@click.option("--folder", default="./demo", show_default=True, metavar="FOLDER", help="Where the demonstration works.")
@click.option("--seeds", default=3, show_default=True, help="Trainings of each set.")
def demo(folder, seeds):
    """The whole pipeline on an embedded data set: compress it, distil it, compare methods and their controls, print a table."""
    from ray_jobs.demo import run

    run(folder, seeds)


@click.command()
@click.option(
    "--store",
    default="./runs",
    show_default=True,
    metavar="PLACE",
    help="Folder, s3:// or gs:// of the stages' results.",
)
def status(store):
    """What lies in a store: stages, finished or not, how many parts they have committed, and the bytes they take.

    Nothing is changed. Every stage can be made again: where space is short, delete its folders; what needs them makes them anew.
    """
    from ray_jobs.status import run

    run(store)

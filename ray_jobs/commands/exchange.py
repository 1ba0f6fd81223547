"""Jobs that give selections to other tools and take theirs."""

import click

from ray_jobs.command_line import command, options
from ray_jobs.options import Compute, Data, Place
from ray_jobs.selections import Exchange, run_export, run_import


@command("export")
@click.option(
    "--selection", required=True, metavar="PLACE", help="The --out folder of compress, write, import or compare."
)
@click.option(
    "--choice",
    metavar="NAME",
    help="Which selection of a comparison: its cell and seed, e.g. 'dq keep 0.1 seed 0'. [default: the folder's only one]",
)
@click.option("--to", required=True, metavar="FILE", help="The file to write; keys to .tsv are separated by tabs.")
@options(Exchange, Data, Compute, Place, without=("skip_corrupt", "batch_size", "graphcut_actors"))
def export_selection(exchange, data, compute, place, selection, choice, to):
    """Write a selection as a file for other tools: keys with sha256, torchvision's indices, a file list, DQ's .npy."""
    run_export(selection, to, exchange, data, compute, place, choice)


@command("import")
@click.option("--from", "from_path", required=True, metavar="FILE", help="The file that names the images.")
@click.option("--out", required=True, metavar="PLACE", help="Folder, s3:// or gs:// for the chosen images as shards.")
@options(Exchange, Data, Compute, Place, without=("skip_corrupt", "batch_size", "graphcut_actors"))
def import_selection(exchange, data, compute, place, from_path, out):
    """Write the images of anyone's selection as shards, which `evaluate --train` scores like any other."""
    run_import(from_path, out, exchange, data, compute, place)

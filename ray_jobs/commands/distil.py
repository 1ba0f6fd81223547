"""Jobs that make images, or labels, which no data set had."""

import click

from ray_jobs.command_line import command, options
from ray_jobs.distill import Distilling, Wanted
from ray_jobs.distill import run as run_distillation
from ray_jobs.experts import Experts, Network
from ray_jobs.experts import run as run_experts
from ray_jobs.options import Backbone, Compute, Data, Place
from ray_jobs.rded import Mosaics
from ray_jobs.rded import run as run_rded
from ray_jobs.relabel import run as run_relabelling


@command()
@click.option("--out", required=True, metavar="PLACE", help="Folder, s3:// or gs:// for shards, container and PNGs.")
@options(Distilling, Network, Experts, Data, Compute, Place, without=("batch_size", "graphcut_actors"))
def distill(distilling, network, experts, data, compute, place, out):
    """Distil a data set into a few synthetic images a class, in few colours: a container, shards and PNGs."""
    run_distillation(Wanted(distilling, network, experts, data, out), compute, place)


@command()
@options(Network, Experts, Data, Compute, Place, without=("batch_size", "graphcut_actors"))
def experts(network, experts, data, compute, place):
    """Train the experts of trajectory matching: networks on the real data, a checkpoint an epoch."""
    run_experts(network, experts, data, compute, place)


@command()
@click.option("--out", required=True, metavar="PLACE", help="Folder, s3:// or gs:// for the mosaics as shards.")
@options(Mosaics, Data, Backbone, Compute, Place, without=("skip_corrupt", "graphcut_actors", "embeddings"))
def rded(mosaics, data, backbone, compute, place, out):
    """Distil without optimisation: mosaics of the crops that a trained network finds most realistic (RDED)."""
    run_rded(mosaics, data, backbone, compute, place, out)


@command()
@click.option("--train", multiple=True, required=True, metavar="SHARDS", help="The images; patterns as for --data.")
@click.option("--out", required=True, metavar="PLACE", help="Folder, s3:// or gs:// for the images with soft labels.")
@options(Data, Backbone, Compute, Place, without=("skip_corrupt", "graphcut_actors", "embeddings"))
def relabel(data, backbone, compute, place, train, out):
    """Put soft labels beside images: the logits of a network trained on --data; then `evaluate --labels soft`."""
    run_relabelling(train, data, backbone, compute, place, out)

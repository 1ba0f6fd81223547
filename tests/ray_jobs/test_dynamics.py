"""Dynamics by a group of workers: what one training tells, a stream, images that cannot be decoded, a worker that dies."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adq.dynamics import short_recipe, short_run
from ray_jobs import dynamics
from ray_jobs.classifier import Classifier
from ray_jobs.job import opened
from ray_jobs.loading import open_set
from ray_jobs.options import Backbone, Place
from ray_jobs.stages import Stage
from ray_jobs.store import Store
from ray_jobs.workers import Member
from tests.ray_jobs.conftest import CPU
from tests.ray_jobs.images import drawn, index_of

ARCH = "convnet-d3-w4"
BROKEN = ("image0007", "image0046")
EPOCHS = 4


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    samples = drawn(0, 50)
    for key in BROKEN:
        at = int(key.removeprefix("image"))
        samples[at] = (key, b"no image", at % 3)
    shards = {"a.tar": samples[:20], "b.tar": samples[20:45], "c.tar": samples[45:]}
    return index_of(shards, tmp_path_factory.mktemp("dynamics") / "data")


@pytest.fixture
def job(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("adq.dynamics.EPOCHS", EPOCHS)
    with opened(Place(store=str(tmp_path / "store")), CPU, "test", ["test dynamics"]) as job:
        yield job


class Kept(Member):
    """A member without a group, whose checkpoints are kept here; the training may be cut off after one of them."""

    def __init__(self, rank: int = 0, world: int = 1, start: dict | None = None, last: int | None = None):
        super().__init__(rank, world, "cpu", 1, 0.0, None)
        object.__setattr__(self, "states", [])
        object.__setattr__(self, "start", start)
        object.__setattr__(self, "last", last)

    def tell(self, note: object) -> None:
        pass

    def checkpoint(self, own: bool = False) -> dict | None:
        return self.start

    def keep(self, state: dict, own: bool = False) -> None:
        self.states.append(state)
        if len(self.states) == self.last:
            raise InterruptedError


def plan_of(index, folder, how: str) -> dynamics.Plan:
    transform = dynamics.input_transform(ARCH, 32)
    classifier = Classifier(ARCH, 3, 0, transform, replace(short_recipe(ARCH, 32), epochs=EPOCHS), 0)
    return dynamics.Plan(Stage(Store(str(folder)), "dynamics", 1, {}, {"how": how}), index, classifier, how, True)


def table_of(plan: dynamics.Plan):
    part = plan.stage.committed()[dynamics.PART]
    return dynamics.parquet_table(plan.stage.read(part))


def test_one_worker_tells_what_a_short_run_tells(index, tmp_path):
    plan = plan_of(index, tmp_path, "decoded")
    dynamics._work(Kept(), plan)
    found, classifier = table_of(plan), plan.classifier
    held = open_set(index, classifier.transform, "decoded", 1, leave_out=True)
    want = short_run(held.images, classifier.build(), classifier.recipe, classifier.transform, 0, "cpu")
    assert found["key"].to_pylist() == held.keys and not set(BROKEN) & set(held.keys) and len(held.keys) == 48
    for name in dynamics.COLUMNS:
        np.testing.assert_array_equal(found[name].to_numpy(), getattr(want, name))
    np.testing.assert_array_equal(np.array(found["correct"].to_pylist()).T, want.correct)


@pytest.mark.parametrize("how", ["decoded", "streamed"])
def test_a_training_cut_off_after_any_epoch_goes_on_to_the_same_dynamics(index, tmp_path, how):
    whole = Kept()
    plan = plan_of(index, tmp_path / "whole", how)
    dynamics._work(whole, plan)
    assert len(whole.states) == EPOCHS and len(table_of(plan)) == 48
    for last in range(1, EPOCHS + 1):
        cut, again = Kept(last=last), plan_of(index, tmp_path / f"cut-{last}", how)
        with pytest.raises(InterruptedError):
            dynamics._work(cut, again)
        rest = Kept(start=cut.states[-1])
        dynamics._work(rest, again)
        assert len(rest.states) == EPOCHS - last
        assert table_of(again).equals(table_of(plan))


class Fragile(Member):
    """A worker of which the second is killed once, after its second checkpoint."""

    def keep(self, state: dict, own: bool = False) -> None:
        super().keep(state, own)
        dead = Path(os.environ["TRACES"], "dead")
        if self.rank == 1 and state["training"]["epoch"] == 2 and not dead.exists():
            dead.touch()
            time.sleep(3)  # the checkpoint is registered
            os.kill(os.getpid(), signal.SIGKILL)


def fragile(member: Member, plan: dynamics.Plan) -> None:
    os.environ["TRACES"] = plan.stage.store.root
    WORK(Fragile(**vars(member) | {"checkpoint_seconds": 0.0}), plan)


WORK = dynamics._work


def test_two_workers_watch_a_stream_and_one_that_is_killed_costs_nothing(job, index, monkeypatch, capsys):
    monkeypatch.setattr(dynamics, "how_to_hold", lambda *_, **__: "streamed")
    monkeypatch.setattr(dynamics, "_work", fragile)
    backbone = Backbone(backbone=ARCH, train_workers=2)
    done = dynamics.run(job, index, backbone, True)
    assert "lost a worker" in capsys.readouterr().out
    keys, found = dynamics.dynamics_by_key(done)
    assert keys == sorted(set(index.table()["key"].to_pylist()) - set(BROKEN))
    assert found.correct.shape == (EPOCHS, 48) and done.summary["images"] == 48
    assert done.summary["recipe"]["schedule"] == "constant"
    assert (found.el2n > 0).all() and len(np.unique(found.el2n)) > 40
    assert not list(Path(job.store.root, done.stage.folder).glob("train*"))


def test_images_that_cannot_be_decoded_are_named_before_anything_is_learnt_and_after_another_left_them_out(job, index):
    backbone, named = Backbone(backbone=ARCH), rf"(?s)a\.tar: key '{BROKEN[0]}' cannot be decoded.*or by --skip-corrupt"
    with pytest.raises(ValueError, match=named):
        dynamics.run(job, index, backbone, False)
    assert dynamics.run(job, index, backbone, True).summary["images"] == 48
    with pytest.raises(
        ValueError, match=rf"(?s)2 images cannot be decoded:.*c\.tar: key '{BROKEN[1]}': left out by an earlier"
    ):
        dynamics.run(job, index, backbone, False)


def test_more_workers_than_the_cluster_has_are_refused_before_anything_is_read(job, index):
    with pytest.raises(ValueError, match="9 training workers of 1 threads need 9 CPUs"):
        dynamics.run(job, index, Backbone(backbone=ARCH, train_workers=9), True)

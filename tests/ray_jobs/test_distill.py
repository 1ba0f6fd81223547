"""Distillation of real images: what is written, what a kill leaves, how many workers, which options."""

import io
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from adq.container import pack
from adq.extractor import input_transform
from adq.shards import tar_bytes
from palette.codec import decode, payload_bytes
from ray_jobs import distilled_set, distilling, ingest
from ray_jobs import evaluate as evaluation
from ray_jobs.distill import Distilling, run, stages
from ray_jobs.distilling import Share
from ray_jobs.evaluate import Evaluation
from ray_jobs.experts import Experts
from ray_jobs.job import Job, opened
from ray_jobs.loading import open_set
from ray_jobs.options import Data, Place
from ray_jobs.stages import Stage
from ray_jobs.store import Store
from ray_jobs.workers import Member
from tests.ray_jobs.conftest import CLASSES, CPU, members, real_samples, write_shard
from tests.ray_jobs.distilling import EXPERTS, NETWORK, TINY, one_by_one, wanted


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return Place(store=str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def job(cluster, place):
    with opened(place, CPU, "test", ["test distill"]) as job:
        yield job


@pytest.fixture
def without_train(monkeypatch):
    monkeypatch.setattr(distilling, "run_group", one_by_one)


def rgb(data: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def series(job: Job, name: str) -> dict[str, list]:
    """The metrics of a stage's run below the job's, by name."""
    client, parent = job.tracker.client, f"tags.`mlflow.parentRunId` = '{job.run.id}'"
    found = next(r for r in client.search_runs([job.tracker.experiment_id], parent) if r.info.run_name == name)
    return {m: [v.step for v in client.get_metric_history(found.info.run_id, m)] for m in found.data.metrics}


def test_a_set_is_distilled_written_and_evaluated_and_once_is_enough(
    job, place, shards, tmp_path, capsys, monkeypatch, without_train
):
    out, command = tmp_path / "out", wanted(shards, tmp_path / "out", start="graphcut", start_epochs=1)
    done = run(command, CPU, place)
    said = capsys.readouterr().out
    summary = done["distilled"].summary

    palettes, indices, labels, classes = decode((out / "distilled.tessera").read_bytes())
    assert classes == list(CLASSES) and labels.tolist() == sorted([*range(10)] * 2)
    images = np.take_along_axis(palettes[:, :, None], indices.reshape(20, -1, 1, 1).astype(int), axis=1).reshape(
        20, 32, 32, 3
    )
    found = members(out)
    assert len(found) == 40
    for n, (image, label) in enumerate(zip(images, labels, strict=True)):
        assert np.array_equal(rgb(found[f"distilled_{n:05d}.png"]), image)
        assert found[f"distilled_{n:05d}.cls"] == str(label).encode()
        png = out / "png" / f"{label}-{CLASSES[label]}" / f"distilled_{n:05d}.png"
        assert png.read_bytes() == found[f"distilled_{n:05d}.png"]
    assert (out / "classes.txt").read_text().split() == list(CLASSES)
    assert summary["payload_bytes"] == (out / "distilled.tessera").stat().st_size <= 20 * payload_bytes(32, 32, 4)
    assert summary["tar_bytes"] == sum(path.stat().st_size for path in out.glob("*.tar"))
    assert summary["png_bytes"] == sum(path.stat().st_size for path in out.glob("png/*/*.png"))
    assert (summary["images"], summary["images_per_class"], summary["colors"]) == (20, 2, 4)
    assert 1 < summary["mean_colors_used"] <= 4
    pictures = {path.name for path in (out / "pictures").iterdir()}
    assert pictures == {"distilled.png", "losses.png", "colors.png", "bits.png"}
    assert f"{summary['payload_bytes']:,} bytes payload" in said and f"--train {out}" in said

    times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    run(command, CPU, place)
    assert capsys.readouterr().out.count("done before") == 4
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == times
    with pytest.raises(ValueError, match="holds the result of another command"):
        stages(job, wanted(shards, out, seed=1))

    write_shard(tmp_path / "test.tar", real_samples(40, split="val"))
    (tmp_path / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    monkeypatch.setattr(evaluation, "run_group", one_by_one)
    options = Evaluation("convnet-d3", seeds=1, steps=3, train_batch=10, width=8)
    evaluation.run((str(out),), (str(tmp_path / "test.tar"),), options, Data(), CPU, place)
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| out "))
    assert [cell.strip() for cell in row.split("|")][2:4] == ["convnet-d3", "20"] and " %" in row


class Fragile(Member):
    """A worker of which the second is killed once, after its second checkpoint."""

    def keep(self, state: dict, own: bool = False) -> None:
        super().keep(state, own)
        dead = Path(os.environ["TRACES"], "dead")
        if self.rank == 1 and state["distillation"]["step"] == 20 and not dead.exists():
            dead.touch()
            time.sleep(3)  # the checkpoint is registered
            os.kill(os.getpid(), signal.SIGKILL)


def fragile(member: Member, plan: Share) -> None:
    os.environ["TRACES"] = plan.stage.store.root
    distilling._distil_share(Fragile(**vars(member)), plan)


class Apart(Member):
    """A member of a plain process group, without Ray Train."""

    def checkpoint(self, own: bool = False) -> None:
        return None

    def keep(self, state: dict, own: bool = False) -> None:
        pass

    def tell(self, note: object) -> None:
        pass


@ray.remote(num_cpus=1)
def undisturbed(rank: int, address: str, plan: Share) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    distilling._distil_share(Apart(rank, 2, "cpu", 1, 0, None), plan)


def test_two_workers_share_a_network_and_one_that_is_killed_costs_nothing(job, shards, tmp_path, capsys, monkeypatch):
    work, plans = distilling._distil_share, []
    monkeypatch.setattr(distilling, "_distil_share", fragile)
    run_group = distilling.run_group
    monkeypatch.setattr(distilling, "run_group", lambda group, *rest: plans.append(rest[1]) or run_group(group, *rest))
    command = wanted(shards, tmp_path / "out", mode="network", workers=2, warmup_epochs=1, steps=34)
    done = stages(job, command, checkpoint_seconds=0)
    said = capsys.readouterr().out
    assert "lost a worker" in said and re.search(r"distill +goes on at step 20\n", said)
    assert not list(Path(job.store.root, done["distill"].stage.folder).glob("train*"))
    logged = series(job, "distill")
    assert {"loss", "maximum_color", "palette_balance", "color_assignment", "colors_used", "least_colors_used"} <= set(
        logged
    )
    assert sorted(logged["loss"]) == sorted(logged["colors_used"]) == list(range(1, 35))

    monkeypatch.setattr(distilling, "_distil_share", work)
    apart = Stage(Store(str(tmp_path)), "distill", 1, {}, done["distill"].stage.config)
    calls = [undisturbed.remote(rank, f"file://{tmp_path}/meet", replace(plans[0], stage=apart)) for rank in (0, 1)]
    ray.get(calls, timeout=120)
    assert {name: part.sha256 for name, part in apart.committed().items()} == {
        part.name: part.sha256 for part in done["distill"].parts
    }
    assert [part.rows for part in done["distill"].parts if part.name.startswith("set/")] == [10, 10]


def test_in_direct_mode_two_workers_make_what_one_makes(job, shards, tmp_path, without_train):
    one, two = (stages(job, wanted(shards, tmp_path / str(n), workers=n)) for n in (1, 2))
    assert one["distill"].stage.digest != two["distill"].stage.digest
    assert (tmp_path / "1" / "distilled.tessera").read_bytes() == (tmp_path / "2" / "distilled.tessera").read_bytes()
    assert members(tmp_path / "1") == members(tmp_path / "2")


def test_full_colour_has_no_container(job, shards, tmp_path, without_train):
    out = tmp_path / "out"
    summary = stages(job, wanted(shards, out, mode="none"))["distilled"].summary
    pngs = {name: data for name, data in members(out).items() if name.endswith(".png")}
    assert not list(out.glob("distilled*.tessera")) and "colors" not in summary
    assert max(len(np.unique(rgb(data).reshape(-1, 3), axis=0)) for data in pngs.values()) > 200
    labels = [int(data) for name, data in members(out).items() if name.endswith(".cls")]
    assert summary["png_bytes"] == sum(map(len, pngs.values()))
    assert summary["payload_bytes"] == len(pack([*pngs.values()], ["png"] * 20, labels, CLASSES))
    assert {path.name for path in (out / "pictures").iterdir()} == {"distilled.png", "losses.png", "bits.png"}
    assert ingest.run(job, Data(data=(str(out),))).images == 20


def test_a_set_larger_than_a_container_has_several(job, shards, tmp_path, without_train, monkeypatch):
    monkeypatch.setattr(distilled_set, "LARGEST", 8 * (32 * 32 + 3 * 4 + 64))
    done = stages(job, wanted(shards, tmp_path / "out", steps=2))
    parts = [decode(path.read_bytes()) for path in sorted((tmp_path / "out").glob("distilled*.tessera"))]
    assert [len(labels) for _, _, labels, _ in parts] == [8, 8, 4]
    whole = distilled_set.read_set(done["distill"])
    assert np.concatenate([labels for _, _, labels, _ in parts]).tolist() == whole.labels.tolist()


def test_images_that_cannot_be_decoded_stop_it_or_are_left_out(job, tmp_path, without_train):
    samples = real_samples(60)
    samples[3] = (samples[3][0], b"no image", samples[3][2])
    write_shard(tmp_path / "a.tar", samples)
    given = {"images_per_class": 1, "steps": 1, "start": "kmeans", "start_epochs": 1, "mode": "soft"}
    with pytest.raises(ValueError, match=f"{samples[3][0]}' cannot be decoded"):
        stages(job, wanted(tmp_path / "a.tar", tmp_path / "out", **given))
    done = stages(job, wanted(tmp_path / "a.tar", tmp_path / "out", skip_corrupt=True, **given))
    assert done["start"].summary["images"] == 59 and done["distilled"].summary["images"] == 10


def test_some_rows_of_a_set_are_loaded_alone(job, shards):
    index, transform = ingest.run(job, Data(data=(str(shards),))), input_transform("convnet-d3", 32)
    whole = open_set(index, transform, "decoded", 1)
    rows = np.array([0, 7, 300, 799])
    for how in ("decoded", "encoded"):
        some = open_set(index, transform, how, 1, rows=rows)
        assert some.keys == [whole.keys[row] for row in rows]
        assert torch.equal(some.images.batch(np.arange(4)), whole.images.batch(rows))
        assert some.labels.tolist() == whole.labels[rows].tolist()


def test_the_names_of_the_classes_are_part_of_a_data_set(job, shards, tmp_path):
    (tmp_path / "more.txt").write_text("".join(f"{name}\n" for name in (*CLASSES, "unicorn")))
    names = (None, str(shards / "classes.txt"), str(tmp_path / "more.txt"))
    beside, same, more = (ingest.run(job, Data(data=(str(shards),), classes=name), False) for name in names)
    assert beside.manifest.content == same.manifest.content != more.manifest.content
    assert more.classes[:10] == same.classes and same.table().equals(more.table())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images_per_class": 10, "bytes_per_class": 3072}, "--images-per-class and --bytes-per-class: give one"),
        ({"images_per_class": 0}, "images_per_class, steps, .* at least 1"),
        ({"bytes_per_class": -1}, "--bytes-per-class -1"),
        ({"bytes_per_class": 3072, "mode": "none"}, "--mode none"),
        ({"colors": 1}, "colors must be 2 to 256"),
        ({"steps": 0}, "must be at least 1"),
        ({"mode": "other"}, "mode is one of network, direct"),
        ({"lam": "much"}, "--lam much: expected balanced, or a number"),
        ({"lam": "nan"}, "--lam nan"),
        ({"image_lr": float("nan")}, "learning rates"),
        ({"maximum_color": -1.0}, "maximum_color must be at least 0"),
        ({"workers": 0}, "--workers 0"),
        ({"start_epochs": 0}, "--start-epochs 0"),
        ({"matching": "tm", "workers": 2}, "--workers 2 with --matching tm"),
        ({"soft_labels": True}, "--matching tm alone"),
        ({"matching": "tm", "first_start": 16}, "first_start <= last_start"),
        ({"matching": "tm", "student_batch": -1}, "batch_size must be at least 1"),
    ],
)
def test_a_wrong_option_is_an_error_that_says_what_is_expected(options, message):
    with pytest.raises(ValueError, match=message):
        Distilling(**options)


def test_lambda_is_a_number_or_balanced():
    assert Distilling(lam="1").recipe(1, 32).lam == 1.0
    assert Distilling().recipe(1, 32).lam == "balanced"
    assert [Distilling().recipe(1, side).colors for side in (32, 64, 128)] == [32, 64, 64]
    assert [replace(NETWORK, image_size=side).blocks(side) for side in (28, 32, 64, 128)] == [3, 3, 4, 5]


def test_what_the_data_does_not_allow_is_an_error_before_a_step(job, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(distilling, "run_group", lambda *_: pytest.fail("a group is started"))
    cases = [
        ({"images_per_class": 500}, "class .* has .* images, 500 synthetic ones cannot start from them"),
        ({"workers": 11}, "--workers 11: each needs a class, there are 10"),
        ({"workers": 5}, "5 training workers of 1 threads need 5 CPUs, the cluster has 3"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            stages(job, wanted(shards, tmp_path / "out", **options))
    command = wanted(shards, tmp_path / "out")
    for network, message in (({"depth": 6}, "halves the image 6 times"), ({"image_size": 2000}, "up to 1024")):
        with pytest.raises(ValueError, match=message):
            stages(job, replace(command, network=replace(NETWORK, **network)))
    with pytest.raises(ValueError, match=r"--expert-epochs 3: .*start epoch of 15 .* at least 17 epochs"):
        replace(command, options=Distilling(**TINY, matching="tm"), experts=EXPERTS)
    replace(command, options=Distilling(**TINY, matching="tm"), experts=Experts(expert_epochs=17))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x.tar").write_bytes(tar_bytes([]))
    with pytest.raises(ValueError, match="holds other shards already"):
        stages(job, wanted(shards, tmp_path / "full"))

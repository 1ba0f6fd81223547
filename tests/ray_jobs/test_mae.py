"""A masked autoencoder trained on real images: what is written and logged, what a kill leaves, what is held out."""

import io
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adq.fill import fill
from adq.mae import PRESETS, fresh, patches_to_mask
from adq.mae_training import random_masks
from adq.mae_weights import load
from adq.randomness import torch_generator
from adq.reconstruction import psnr, reconstruct
from ray_jobs import ingest, mae, mae_exam
from ray_jobs.job import opened
from ray_jobs.mae import Painting, Plan, run, train_mae
from ray_jobs.mae_exam import held_out
from ray_jobs.options import Data, Place
from ray_jobs.shard_reader import ShardReader
from ray_jobs.stages import Stage
from ray_jobs.store import Store, parquet_table
from ray_jobs.workers import Group, run_group
from tests.ray_jobs.conftest import CLASSES, CPU, real_samples, write_shard
from tests.ray_jobs.distilling import Alone, one_by_one, one_thread
from tests.ray_jobs.images import drawn, index_of
from tests.ray_jobs.test_distill import series

FEW = Painting(steps=6, train_batch=32)


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """Two shards of 60 and 40 real images."""
    folder = tmp_path_factory.mktemp("few")
    samples = real_samples(100)
    write_shard(folder / "a.tar", samples[:60])
    write_shard(folder / "b.tar", samples[60:])
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return Place(store=str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def job(cluster, place):
    with opened(place, CPU, "test", ["test mae"]) as job:
        yield job


@dataclass(frozen=True)
class Mortal(Alone):
    """A worker alone that dies after its fourth checkpoint, within the second epoch, and finds it when it is called again."""

    kept: list = field(default_factory=list)

    def checkpoint(self, own: bool = False) -> dict | None:
        return torch.load(io.BytesIO(self.kept[-1]), weights_only=True) if self.kept else None

    def keep(self, state: dict, own: bool = False) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.kept.append(buffer.getvalue())
        if len(self.kept) == 4:
            raise InterruptedError

    def due(self, since: float) -> bool:
        return True


def test_a_network_is_trained_scored_and_written(job, few, place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mae, "run_group", one_by_one)
    data = Data(data=(str(few),))
    found = run(FEW, data, CPU, place, str(tmp_path / "out"))
    said = capsys.readouterr().out
    model, facts = load(tmp_path / "out" / "mae.pt"), found.summary
    assert model.config == PRESETS["small-32"] and facts["steps"] == 6

    keys = sorted(key for key, *_ in real_samples(100))
    tests = sorted(np.array(keys)[held_out(keys)])
    pictures = {key: np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for key, image, _ in real_samples(100)}
    pixels = torch.from_numpy(np.stack([pictures[key] for key in tests]))
    dropped = torch.cat([random_masks(1, 16, 0.25, torch_generator(0, "dropped", key)) for key in tests])
    known = patches_to_mask(dropped, 8)
    assert facts["images"] == len(tests) and (~dropped).sum() == 4 * len(tests)
    with one_thread():
        assert facts["psnr"] == pytest.approx(psnr(reconstruct(model, pixels, known, "cpu"), pixels, ~known), abs=0.02)
    for filler in ("mean", "harmonic"):
        assert facts[f"psnr_{filler}"] == pytest.approx(psnr(fill(pixels, known, filler), pixels, ~known), abs=0.01)
    assert f"{facts['psnr']:.2f} dB" in said and str(tmp_path / "out" / "mae.png") in said
    assert Image.open(tmp_path / "out" / "mae.png").width > 400
    history = found.table("history")
    assert history["step"].to_pylist() == [1, 2, 3, 4, 5, 6] and all(np.isfinite(history["curve/loss"]))
    assert found.table("held_out")["step"].to_pylist() == [1, 2, 3, 4, 5, 6]

    monkeypatch.setattr(mae, "run_group", lambda *_: pytest.fail("trains again"))
    run(FEW, data, CPU, place, str(tmp_path / "named.pt"))
    assert (tmp_path / "named.pt").read_bytes() == (tmp_path / "out" / "mae.pt").read_bytes()
    assert "mae           done before   6 steps" in capsys.readouterr().out


def test_what_a_kill_leaves_goes_on_to_the_bits_of_a_group_of_ray_train(job, few, place, tmp_path, capsys, monkeypatch):
    kept: list[bytes] = []

    def alone(group, work, plan, on_note) -> None:
        with one_thread():
            work(Mortal(0, 1, "cpu", 1, 0.0, on_note, kept), plan)

    monkeypatch.setattr(mae, "run_group", alone)
    index = ingest.run(job, Data(data=(str(few),)))
    options = replace(FEW, seed=1)
    with pytest.raises(InterruptedError):
        train_mae(job, index, options)
    found = train_mae(job, index, options)
    assert "goes on at step 4" in capsys.readouterr().out
    logged = series(job, "mae")
    for name in ("loss", "psnr", "held_out_loss", "psnr_harmonic"):
        assert sorted(logged[f"curve/{name}"]) == [1, 2, 3, 4, 5, 6]
    assert logged["psnr"] == logged["psnr_mean"] == [0]

    stage = Stage(Store.at(str(tmp_path)), "mae", 1)
    plan = Plan(stage, index, options.config, options.recipe, 1, "decoded", False)
    run_group(Group(1, 1, "cpu", stage), mae._work, plan, lambda _: None)
    straight = stage.committed()
    assert {part.name: part.sha256 for part in found.parts} == {name: part.sha256 for name, part in straight.items()}


def test_within_an_epoch_it_is_scored_ten_times_and_kept_in_little_of_the_time(tmp_path):
    class Slow(Alone):
        def keep(self, state: dict, own: bool = False) -> None:
            time.sleep(0.2)
            super().keep(state, own)

    index = index_of({"a.tar": drawn(0, 60)}, tmp_path / "data")
    options, stage = replace(FEW, steps=25, train_batch=1), Stage(Store.at(str(tmp_path)), "mae", 2)
    member, began = Slow(0, 1, "cpu", 1, 0.0, lambda _: None), time.monotonic()
    with one_thread():
        mae._work(member, Plan(stage, index, options.config, options.recipe, 0, "decoded", False))
    assert 1 <= len(member.kept) <= 1 + (time.monotonic() - began) / (0.2 / mae.KEEPING)
    assert member.kept[0]["training"]["epoch"] == 0
    (scores,) = (part for name, part in stage.committed().items() if name == mae.SCORES)
    steps = parquet_table(stage.read(scores))["step"].to_pylist()
    assert steps == [3, 5, 8, 10, 13, 15, 18, 20, 23, 25]


@pytest.mark.parametrize("how", ["decoded", "encoded", "streamed"])
def test_what_is_held_out_is_not_trained_on(how, tmp_path):
    samples = drawn(0, 120)
    index = index_of({"a.tar": samples[:50], "b.tar": samples[50:51], "c.tar": samples[51:]}, tmp_path / "data")
    pixels = {key: np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for key, image, _ in samples}
    out = dict(zip(sorted(pixels), held_out(sorted(pixels)), strict=True))
    wanted = sorted(image.tobytes() for key, image in pixels.items() if not out[key])
    assert 100 < len(wanted) < 120
    plan = Plan(Stage(Store.at(str(tmp_path)), "mae", 1), index, FEW.config, FEW.recipe, 0, how, False)
    for world in (1, 2):
        opened = [mae._opened(plan, Alone(rank, world, "cpu", 1, 0.0, None)) for rank in range(world)]
        batches = [list(data.epoch(FEW.recipe, 0, 1, rank, world)) for rank, (data, _) in enumerate(opened)]
        assert [[count for *_, count in batch] for batch in batches] == world * [[32, 32, 32, len(wanted) - 96]]
        given = [image for batch in batches for images, *_ in batch for image in images]
        assert sorted(image.permute(1, 2, 0).numpy().tobytes() for image in given) == wanted
        assert np.array_equal(opened[0][1].pixels, np.stack([pixels[key] for key in sorted(pixels) if out[key]]))
        assert all(exam is None for _, exam in opened[1:])


def test_held_out_images_that_cannot_be_decoded_are_left_out_on_demand(tmp_path):
    samples = drawn(0, 120)
    out = held_out([key for key, *_ in samples])
    broken = int(out.argmax())
    samples[broken] = (samples[broken][0], b"no image", samples[broken][2])
    index = index_of({"a.tar": samples}, tmp_path / "data")
    reader = ShardReader(index, FEW.config.transform, 1)
    assert list(mae_exam._read(reader, np.flatnonzero(out), True)) == np.flatnonzero(out)[1:].tolist()
    with pytest.raises(ValueError, match=f"{samples[broken][0]}' cannot be decoded"):
        mae_exam._read(reader, np.flatnonzero(out), False)


def test_one_of_twenty_images_is_held_out_whatever_else_is_there():
    keys = [f"image{n}" for n in range(4000)]
    chosen = held_out(keys)
    assert 150 < chosen.sum() < 250
    assert np.array_equal(held_out(keys[1000:]), chosen[1000:])
    assert held_out(keys[:2]).sum() == 1


def test_adq_s_patches_are_what_is_hidden():
    assert Painting().recipe.block == 8 and Painting(size="small-224").recipe.block == 16
    assert Painting(base="none").config == replace(PRESETS["small-32"], base="none")
    assert fresh(Painting(size="small-64").config, 0).config.image_size == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "huge"}, "--size huge"),
        ({"workers": 0}, "--workers 0"),
        ({"steps": 0}, "steps and batch_size"),
        ({"block": 12}, "block 12"),
    ],
)
def test_a_wrong_option_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        Painting(**options)

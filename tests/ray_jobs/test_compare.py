"""A comparison on a real cluster, and its table by hand."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from adq.container import pack
from adq.features import load
from adq.models import build
from ray_jobs import compare, compress, evaluate, ingest, rank, relabel, weights
from ray_jobs.comparison import Outcome, as_table, cells, compared_at, differences_elsewhere, runs_table
from ray_jobs.comparison_figures import accuracy_over_keep
from ray_jobs.evaluate import Evaluation
from ray_jobs.grid import Comparison, Grid, Selected, Variant
from ray_jobs.job import opened
from ray_jobs.options import Backbone, Data, Place, Selection
from ray_jobs.payload import payload_bytes
from ray_jobs.store import parquet_table
from ray_jobs.tracking import open_tracker
from tests.ray_jobs.conftest import CLASSES, CPU, members, write_shard

METHODS = "random,dq,adq:alpha=1:bins=5,herding,el2n"
OWN = "own"  # a set that no method selected
NETWORK = "convnet-d3-w8"
BACKBONE = Backbone(backbone=NETWORK, weights="train:1")


def grid(shards, out, **changes) -> Grid:
    sets = (f"{OWN}={shards}/part-000001.tar",)
    comparison = Comparison(METHODS, keep="0.05,0.1", sets=sets, extractors=1, without_controls=True)
    evaluation = Evaluation(NETWORK, seeds=2, steps=6, train_batch=32)
    data, test = Data(data=(f"{shards}/part-*[012].tar",)), (f"{shards}/part-000003.tar",)
    return Grid(replace(comparison, **changes), evaluation, data, Selection(), BACKBONE, test, str(out))


@pytest.fixture(scope="module")
def compared(cluster, shards, tmp_path_factory):
    """The folder of a comparison's store and results, and what it printed."""
    folder = tmp_path_factory.mktemp("compared")
    compare.run(grid(shards, folder / "out"), replace(CPU, actors=2), Place(store=str(folder / "runs")))
    return folder


def test_every_run_is_there_and_an_evaluation_of_written_shards_says_the_same(compared, shards):
    runs = parquet_table((compared / "out" / "runs.parquet").read_bytes())
    rows = runs.to_pylist()
    assert len(rows) == 5 * 2 * 2 + 2 and {row["method"] for row in rows} == {*METHODS.split(","), OWN}
    assert {row["images"] for row in rows if row["method"] != OWN} == {38, 75}
    own = [row for row in rows if row["method"] == OWN]
    assert [(row["images"], row["keep"], row["seed"]) for row in own] == [(250, 1 / 3, 0), (250, 1 / 3, 1)]
    keys = runs.schema.metadata[b"test_keys"].decode().split("\n")
    for row in rows:
        correct = np.unpackbits(np.frombuffer(row["correct"], np.uint8))[: len(keys)]
        assert row["top1"] == correct.mean()
    data, place = Data(data=(f"{shards}/part-*[012].tar",)), Place(store=str(compared / "runs"))
    out = compared / "written"
    selection = Selection(method="dq", keep=0.1, seed=0)
    compress.run(compress.Compression(data, BACKBONE, selection, str(out)), CPU, place)
    with opened(place, CPU, "again", ["again"]) as job:
        sets = {"written": ingest.run(job, Data(data=(str(out),)), False)}
        test = ingest.run(job, Data(data=(f"{shards}/part-000003.tar",)), False, "test")
        found = evaluate.evaluate(job, sets, test, Evaluation(NETWORK, seeds=1, steps=6, train_batch=32)).to_pylist()
    same = next(row for row in rows if (row["method"], row["keep"], row["seed"]) == ("dq", 0.1, 0))
    assert found[0]["top1"] == same["top1"]
    files = {name: data for name, data in members(out).items() if name.endswith(".jpg")}
    labels = [int(members(out)[name.replace(".jpg", ".cls")]) for name in files]
    assert same["payload"] == found[0]["bytes"] == len(pack([*files.values()], ["jpg"] * 75, np.array(labels), CLASSES))


@pytest.mark.parametrize("method", ["random", "dq"])
def test_the_largest_selection_within_a_budget(compared, shards, method):
    wanted, place = grid(shards, compared / "out"), Place(store=str(compared / "runs"))
    with opened(place, CPU, "budget", ["budget"]) as job:
        index = ingest.run(job, wanted.data)
        selected, variant = Selected(job, index, wanted), Variant(method, Selection(method=method))
        for budget in (3000, 20_000):
            rows, found = selected.within(variant, budget, 1)
            _, more = selected.of(variant, (found.images + 1) / index.images, 1)
            assert found.payload == payload_bytes(index, rows.positions) <= budget < more.payload
        assert selected.within(variant, 1 << 30, 1)[1].images == index.images
        with pytest.raises(ValueError, match=r"900 bytes hold no image of .*: one takes [0-9,]+$"):
            selected.within(variant, 900, 1)


def test_cells_hold_their_trainings_in_mlflow_and_the_table_links_to_them(compared):
    client = (tracker := open_tracker(None, "tessera", str(compared / "runs"))).client
    every = client.search_runs([tracker.experiment_id], max_results=500)
    by_name = {run.info.run_name: run for run in every}
    cell = by_name[f"dq keep 0.1 {NETWORK}"]
    assert cell.data.params["method"] == "dq" and cell.data.params["keep"] == "0.1"
    assert 0 <= cell.data.metrics["top1"] <= 1 and cell.info.status == "FINISHED"
    below = [run for run in every if run.data.tags.get("mlflow.parentRunId") == cell.info.run_id]
    assert {run.info.run_name for run in below} == {f"dq keep 0.1 {NETWORK} seed {seed}" for seed in (0, 1)}
    assert np.mean([run.data.metrics["top1"] for run in below]) == pytest.approx(cell.data.metrics["top1"])
    table = (compared / "out" / "table.md").read_text()
    assert cell.info.run_id in table and table.count("| convnet-d3-w8") == 11
    assert (compared / "out" / f"{NETWORK}.png").stat().st_size > 10_000
    told = by_name["compare"].data.tags["mlflow.note.content"]
    assert f"{100 * cell.data.metrics['top1']:.1f} ± " in told and told.count("| convnet-d3-w8") == 11
    adq = by_name[f"adq:alpha=1:bins=5 keep 0.1 {NETWORK}"].data
    assert adq.params["alpha"] == "1.0" and adq.params["bins"] == "5" and adq.metrics["moved"] > 0


def test_again_trains_nothing_and_writes_the_same(compared, shards, monkeypatch, capsys):
    before = (compared / "out" / "runs.parquet").read_bytes()
    monkeypatch.setattr(compare, "pack", lambda *_: pytest.fail("trains again"))
    compare.run(grid(shards, compared / "out"), CPU, Place(store=str(compared / "runs")))
    said = capsys.readouterr().out
    assert "0 networks, 22 done before" in said and "| over random" in said
    assert (compared / "out" / "runs.parquet").read_bytes() == before


def test_a_recipe_that_is_edited_in_place_has_cells_of_its_own(cluster, shards, tmp_path):
    recipe, out = tmp_path / "mine.toml", tmp_path / "out"
    place = Place(store=str(tmp_path / "runs"))
    found = []
    for steps in (2, 8):
        recipe.write_text(f"steps = {steps}\nbatch_size = 32\nlr = 0.05\n")
        wanted = grid(shards, out, methods="random", keep="0.1", sets=())
        compare.run(replace(wanted, evaluation=Evaluation(NETWORK, seeds=1, recipe=str(recipe))), CPU, place)
        top1 = parquet_table((out / "runs.parquet").read_bytes())["top1"][0].as_py()
        tracker = open_tracker(None, "tessera", place.store)
        runs = tracker.client.search_runs([tracker.experiment_id])
        cells_of = [run for run in runs if run.info.run_name == f"random keep 0.1 {NETWORK}"]
        linked = next(run for run in cells_of if run.info.run_id in (out / "table.md").read_text())
        below = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == linked.info.run_id]
        assert [run.data.params["steps"] for run in below] == [str(steps)]
        assert linked.data.metrics["top1"] == top1
        found.append(linked.info.run_id)
    assert len(set(found)) == 2 == len(cells_of)


def test_an_estimate_trains_nothing(compared, shards, capsys):
    wanted = grid(shards, compared / "estimate", methods="random,adq", sets=(), estimate=True, without_controls=False)
    compare.run(wanted, CPU, Place(store=str(compared / "runs")))
    said = capsys.readouterr().out
    assert "5 sets x 2 keep ratios x 2 seeds x 1 networks: 20 trainings" in said and "cost" in said
    assert not list((compared / "estimate").glob("*"))


@pytest.mark.parametrize(
    ("methods", "keep", "message"),
    [
        ("random,hearding", "0.1", "--method hearding: expected one of adq"),
        ("adq:beta=1", "0.1", "no setting 'beta'; known"),
        ("dq,herding:bins=5", "0.1", "--methods herding:bins=5: herding has no setting 'bins'; known: none"),
        ("adq:alpha=much", "0.1", "alpha is 'much', expected float"),
        ("adq:alpha=2", "0.1", "--alpha 2.0: expected 0"),
        (" , ", "0.1", "give at least one"),
        ("random", "0.1;0.2", "expected shares such as"),
        ("random", "0.00001", "keeps none; raise it"),
    ],
)
def test_what_cannot_be_compared_is_said(cluster, compared, shards, methods, keep, message):
    with pytest.raises(ValueError, match=message):
        wanted = grid(shards, compared / "wrong", methods=methods, keep=keep)
        compare.run(wanted, CPU, Place(store=str(compared / "runs")))


@pytest.mark.parametrize("sets", [("own",), ("=here",), ("random=here",), ("own=here", "own=there")])
def test_further_sets_need_names_of_their_own(shards, sets):
    with pytest.raises(ValueError, match="expected NAME=SHARDS, each with a name of its own"):
        _ = grid(shards, "out", sets=sets).named_sets


def outcome(method: str, seed: int, top1: float, keep: float = 0.1, **changes) -> Outcome:
    correct = np.zeros(10, dtype=bool)
    return Outcome(
        method, keep, seed, 0, 100, 1000 + seed, 0.0, 2.0, 0.0, "net", top1, correct, f"{method}{seed}", **changes
    )


def test_differences_are_taken_seed_by_seed():
    done = [outcome("random", s, t) for s, t in enumerate((0.2, 0.3, 0.4))]
    done += [outcome("dq", s, t) for s, t in enumerate((0.25, 0.35, 0.45))]
    random, dq = cells(done)
    assert (random.mean, dq.mean) == (pytest.approx(0.3), pytest.approx(0.35))
    # Each seed gains the same, so the difference has no spread, while the means' intervals overlap.
    assert dq.over_random == (pytest.approx(0.05), pytest.approx(0, abs=1e-12))
    assert dq.half_interval == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)
    assert math.isnan(random.over_random[0]) and random.over_dq[0] == pytest.approx(-0.05)
    text = as_table([random, dq], {(c.method, c.keep, c.arch): f"http://x/{c.method}" for c in (random, dq)})
    assert (
        "[35.0 ± 24.8][2] |" in text and "\n[2]: http://x/dq" in text and "+5.0 ± 0.0" in text and " 1.0 kB |" in text
    )
    assert "moved" not in text and "GPU" not in text  # columns with nothing in them


def test_a_set_of_nearly_a_ratio_of_the_grid_is_compared_with_it():
    done = [outcome(m, s, t, keep) for m, t in (("random", 0.2), ("dq", 0.3)) for s in (0, 1) for keep in (0.1, 0.104)]
    own = {"near": 0.09998, "nearer": 0.1033, "far": 0.0985}
    done += [outcome(name, s, 0.5, keep) for name, keep in own.items() for s in (0, 1)]
    found = cells(done)
    named = {cell.method: cell for cell in found}
    for name in ("near", "nearer"):
        assert named[name].over_random[0] == pytest.approx(0.3) and named[name].over_dq[0] == pytest.approx(0.2)
    assert math.isnan(named["far"].over_random[0]) and math.isnan(named["far"].over_dq[0])
    assert [compared_at(keep, (0.1, 0.104)) for keep in own.values()] == [0.1, 0.104, None]
    assert compared_at(0.1, ()) is None
    assert differences_elsewhere(found).splitlines() == [
        "near has 100 images; its differences are to what is chosen at keep 0.1.",
        "nearer has 100 images; its differences are to what is chosen at keep 0.104.",
    ]
    assert not differences_elsewhere(cells(done[:8]))
    ticks = accuracy_over_keep(found, "net").axes[0].get_xticklabels()
    assert [text.get_text() for text in ticks] == ["9.85 %", "10 %", "10.4 %"]


def test_the_figure_shows_every_method(tmp_path):
    done = [outcome(m, s, 0.2 + 0.1 * s, keep) for m in ("random", "dq", "adq") for s in (0, 1) for keep in (0.1, 0.5)]
    figure = accuracy_over_keep(cells(done), "net")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["random", "dq", "adq"]
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["10 %", "50 %"]
    figure.savefig(tmp_path / "figure.png")
    assert runs_table(done, ["a"] * 10).num_rows == len(done)


def test_a_small_set_is_ranked_beside_random_images_of_as_many_bytes(compared, shards, capsys):
    data, test = Data(data=(f"{shards}/part-*[012].tar",)), (f"{shards}/part-000003.tar",)
    options, place = Evaluation(NETWORK, seeds=2, steps=6, train_batch=32), Place(store=str(compared / "runs"))
    rank.run(f"{shards}/part-000003.tar", data, test, options, BACKBONE, CPU, place)
    said = capsys.readouterr().out
    rows = {line.split("|")[2].strip(): line for line in said.splitlines() if line.startswith(f"| {NETWORK}")}
    assert set(rows) == {
        rank.REAL, rank.DISTILLED, rank.RANDOM, rank.DISTILLED + rank.PLAIN, rank.RANDOM + rank.PLAIN,
    }  # fmt: skip
    sizes = {name: line.split("|")[4].strip() for name, line in rows.items()}
    assert sizes[rank.DISTILLED] == sizes[rank.DISTILLED + rank.PLAIN]
    random, small = (float(sizes[name].split()[0]) for name in (rank.RANDOM, rank.DISTILLED))
    assert 0.97 * small < random <= small
    assert "label-robust score" in said and "augmentation-robust score" in said
    with pytest.raises(ValueError, match="nothing to rank"):
        rank.run(f"{shards}/part-*[012].tar", data, test, options, BACKBONE, CPU, place)


def test_a_teacher_labels_images_and_a_set_is_ranked_by_such_labels(compared, shards, capsys):
    data, test, small = Data(data=(f"{shards}/part-*[012].tar",)), (f"{shards}/part-000003.tar",), compared / "soft"
    options, place = Evaluation(NETWORK, seeds=2, steps=6, train_batch=32), Place(store=str(compared / "runs"))
    relabel.run((f"{shards}/part-000001.tar",), data, BACKBONE, CPU, place, str(small))
    found, source = members(small), members(shards, "part-000001.tar")
    assert {name: found[name] for name in found if not name.endswith(".npy")} == source
    keys = sorted(name.removesuffix(".jpg") for name in source if name.endswith(".jpg"))
    with opened(place, CPU, "teacher", ["teacher"]) as job:
        teacher = weights.run(job, ingest.run(job, data), BACKBONE)
    model = build(NETWORK, 10, 32)
    model.load_state_dict(torch.load(io.BytesIO(teacher.manifest.bytes("weights.pt")), weights_only=True))
    images = torch.stack([load(source[f"{key}.jpg"], teacher.transform) for key in keys])
    with torch.no_grad():
        logits = model.eval()(teacher.transform.normalise(images)).numpy()
    given = np.stack([np.load(io.BytesIO(found[f"{key}.npy"])) for key in keys])
    assert given.dtype == np.float16
    np.testing.assert_allclose(given, logits, rtol=2e-3, atol=2e-3)

    relabel.run((str(small),), data, BACKBONE, CPU, place, str(compared / "again"))
    assert members(compared / "again") == found, "labels take the place of others"

    capsys.readouterr()
    rank.run(str(small), data, test, replace(options, labels="soft"), BACKBONE, CPU, place)
    said = capsys.readouterr().out
    rows = {
        line.split("|")[2].strip(): line.split("|") for line in said.splitlines() if line.startswith(f"| {NETWORK}")
    }
    assert set(rows) == {
        rank.REAL, rank.DISTILLED + rank.HARD, rank.DISTILLED, rank.RANDOM, rank.DISTILLED + rank.PLAIN,
        rank.RANDOM + rank.PLAIN,
    }  # fmt: skip
    size = {name: float(row[4].split()[0]) for name, row in rows.items()}
    assert size[rank.DISTILLED] - size[rank.DISTILLED + rank.HARD] == pytest.approx(250 * (20 - 1) / 1000, abs=0.2)
    assert 0.97 * size[rank.DISTILLED] < size[rank.RANDOM] <= size[rank.DISTILLED]
    # The rows say what a training on those very labels says.
    with opened(place, CPU, "again", ["again"]) as job:
        sets = {"s": ingest.run(job, Data(data=(str(small),)), False)}
        held_out = ingest.run(job, Data(data=test), False, "test")
        both = evaluate.evaluate(job, sets, held_out, replace(options, labels="both")).to_pylist()
    for name, kind in ((rank.DISTILLED + rank.HARD, "s, hard labels"), (rank.DISTILLED, "s, soft labels")):
        top1 = np.mean([row["top1"] for row in both if row["set"] == kind])
        assert rows[name][5].split()[0] == f"{100 * top1:.1f}"
    with pytest.raises(ValueError, match=r"--labels soft: .* has none"):
        rank.run(f"{shards}/part-000003.tar", data, test, replace(options, labels="soft"), BACKBONE, CPU, place)
    with pytest.raises(ValueError, match="--labels both: a set is ranked by one kind"):
        rank.run(str(small), data, test, replace(options, labels="both"), BACKBONE, CPU, place)


def test_images_that_a_teacher_cannot_see_are_named(compared, shards, tmp_path):
    samples = [("good", next(v for k, v in members(shards, "part-000003.tar").items() if k.endswith(".jpg")), 3)]
    write_shard(tmp_path / "a.tar", [*samples, ("bad", b"no image", 4)])
    (tmp_path / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    data, place = Data(data=(f"{shards}/part-*[012].tar",)), Place(store=str(compared / "runs"))
    with pytest.raises(ValueError, match=r"a\.tar: key 'bad'"):
        relabel.run((str(tmp_path / "a.tar"),), data, BACKBONE, CPU, place, str(tmp_path / "out"))

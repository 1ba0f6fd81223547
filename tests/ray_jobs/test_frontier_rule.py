"""The rule that `compress --budget` learns from a frontier: the best spending, and the settings under which it was the best."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ray_jobs import __main__ as cli
from ray_jobs.compress import Compression
from ray_jobs.encode import Storage
from ray_jobs.frontier_report import points
from ray_jobs.frontier_rule import RULE, Rule, read_rule, rule_bytes, settings
from ray_jobs.options import Backbone, Data, Selection
from ray_jobs.spend import Spend, check_given, learned
from tests.ray_jobs.test_frontier_report import runs

PUBLISHED = Path(__file__).parents[1] / "bench/results/frontier"
THERE = settings(
    "random", Selection(scope="global", alpha=0.3), Backbone("convnet-d3-w32", "train:5", feature_seed=100)
)


def test_the_rule_interpolates_between_budgets_and_leaves_other_sets_out():
    rule = [
        {"arch": p.arch, "budget": p.budget, "method": p.method, "encoding": p.encoding, "mean": p.mean}
        for p in points(runs())
    ]

    def best_spending(points: list[dict], budget: int) -> tuple[str, str, float]:
        return Rule({}, points).spend(budget)[:3]

    distilled = {"arch": "convnet-d3", "budget": 100_000, "method": "distilled", "encoding": "", "mean": 0.9}
    rule.append(distilled | {"payload": 79_000})
    assert best_spending(rule, 100_000) == ("random", "webp:20", pytest.approx(0.42))
    assert best_spending(rule, 10) == ("random", "webp:20", pytest.approx(0.42))
    assert best_spending(rule, 10**9) == ("random", "original", pytest.approx(0.71))
    # Half way in the logarithm: 0.515 as original, 0.515 as webp; a little above it, the original leads.
    assert best_spending(rule, 330_000)[1] == "original"
    assert best_spending(rule, 300_000)[1] == "webp:20"
    # Below its smallest budget nothing is known of a spending; above its largest, it is worth what it was.
    whole = {"arch": "convnet-d3", "budget": 10**7, "method": "all images", "encoding": "original", "mean": 0.95}
    assert best_spending([*rule, whole], 100_000)[1] == "webp:20"
    assert best_spending([*rule, whole], 10**8) == ("random", "original", pytest.approx(0.95))
    control = rule[0] | {"method": "adq-permuted:alpha=1", "mean": 0.99}
    assert best_spending([*rule, control], 100_000) == ("random", "webp:20", pytest.approx(0.42))
    alone = whole | {"encoding": "webp:50"}
    assert best_spending([*rule, alone], 10**6) == ("random", "original", pytest.approx(0.71))
    with pytest.raises(ValueError, match="no spending"):
        best_spending(rule[-1:], 100)


def test_a_smaller_budget_that_reached_more_is_what_is_spent():
    rule = Rule({}, [
        {"arch": "a", "budget": budget, "method": method, "encoding": "original", "mean": mean}
        for method, budget, mean in (("random", 1000, 0.5), ("random", 9000, 0.4), ("dq", 3000, 0.45), ("dq", 9000, 0.45))
    ])  # fmt: skip
    assert [rule.spend(budget)[:4] for budget in (500, 1000, 2000, 9000, 10_000)] == [
        ("random", "original", 0.5, spent) for spent in (500, 1000, 1000, 1000, 1000)
    ]
    equal = Rule({}, [point for point in rule.points if point["method"] == "dq"])
    assert [equal.spend(budget).budget for budget in (3000, 5000, 20_000)] == [3000, 5000, 20_000]


def test_a_set_that_reached_more_is_named_where_the_budget_holds_it():
    known = {"arch": "a", "budget": 1000, "method": "random", "encoding": "original", "mean": 0.5, "payload": 990}
    own = {"arch": "a", "budget": 3000, "method": "own", "encoding": "", "mean": 0.6, "payload": 1500}
    rule = Rule({}, [known, own, own | {"method": "worse", "mean": 0.55, "payload": 1100}])
    told = {budget: rule.spend(budget) for budget in (1000, 1100, 2000)}
    assert [(one.method, one.set) for one in told.values()] == [("random", ""), ("random", "worse"), ("random", "own")]
    assert told[2000].set_mean == 0.6
    assert not Rule({}, [known, own | {"mean": 0.5}]).spend(2000).set


@pytest.mark.parametrize(
    ("given", "warned"), [((), True), (("--method", "adq"), False), (("--encode", "webp:20"), False)]
)
def test_a_budget_that_nothing_says_how_to_spend_is_warned_of(tmp_path, given, warned):
    (tmp_path / "file").write_text("no folder")
    command = [
        "compress",
        "--data",
        "x.tar",
        "--out",
        str(tmp_path / "o"),
        "--budget",
        "3MB",
        "--store",
        str(tmp_path / "file"),
    ]
    done = CliRunner().invoke(cli.main, [*command, *given])
    assert done.exit_code == 1 and isinstance(done.exception, OSError)
    assert ("warning: nothing was learned, so 3MB are spent on adq as original" in done.output) == warned


def written(folder: Path) -> str:
    (folder / RULE).write_bytes(rule_bytes(THERE, points(runs())))
    return str(folder)


def test_a_spending_is_repeated_with_the_settings_that_it_was_measured_with(tmp_path, capsys):
    place = written(tmp_path)
    assert len(read_rule(place).points) == 6
    asked = Compression(Data(("x.tar",)), Backbone(train_workers=2), Selection(seed=7, keep=0.2), "out", Storage())
    found, variant, spent = learned(asked, place, 100_000, given=set())
    assert spent == 100_000
    assert found.storage == Storage("webp:20", "random")
    assert variant.selection == Selection("random", 0.2, "global", alpha=0.3, seed=7)
    assert found.backbone == Backbone("convnet-d3-w32", "train:5", feature_seed=100, train_workers=2)
    assert "webp:20: about 42.0 %" in (said := capsys.readouterr().out) and "warning" not in said


def test_what_the_user_gives_wins_over_the_frontier_and_is_told(tmp_path, capsys):
    place = written(tmp_path)
    backbone = Backbone("convnet-d3-w64", "train:5")
    asked = Compression(
        Data(("x.tar",)), backbone, Selection(alpha=0.3, scope="class"), "out", Storage(saliency="grad-cam")
    )
    found, variant, _ = learned(
        asked, place, 100_000, {"backbone", "weights", "alpha", "scope", "saliency", "data", "seed"}
    )
    assert found.backbone == Backbone("convnet-d3-w64", "train:5", feature_seed=100)
    assert found.storage.saliency == "grad-cam" and variant.selection.scope == "class"
    warned = capsys.readouterr().out.partition("warning: ")[2]
    assert (
        "--saliency grad-cam (there random); --scope class (there global); --backbone convnet-d3-w64 (there " in warned
    )
    assert "--weights" not in warned and "--alpha" not in warned and "--data" not in warned


def test_settings_that_the_best_method_names_are_the_frontier_s(tmp_path, capsys):
    best = {"arch": "a", "budget": 1000, "method": "adq:alpha=1", "encoding": "original", "mean": 0.5}
    rule = {"settings": THERE, "points": [best | {"images": 1, "payload": 1, "seeds": 1}]}
    (tmp_path / RULE).write_text(json.dumps(rule))
    asked = Compression(Data(("x.tar",)), Backbone(), Selection(alpha=0.2), "out", Storage())
    assert learned(asked, str(tmp_path), 1000, set())[1].selection.alpha == 1
    assert "warning" not in capsys.readouterr().out
    assert learned(asked, str(tmp_path), 1000, {"alpha"})[1].selection.alpha == 1
    assert "--alpha (there adq:alpha=1)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "frontier", "why"),
    [
        ({"budget", "keep"}, None, "--keep: a --budget says"),
        ({"method", "frontier"}, "/f", "--method: --frontier chooses"),
        ({"method", "encode"}, "/f", "--method and --encode: --frontier chooses"),
        ({"method", "encode", "saliency"}, None, None),
        ({"saliency", "backbone"}, "/f", None),
    ],
)
def test_options_that_would_be_ignored_are_refused(given, frontier, why):
    spend = Spend("1MB", frontier)
    if why is None:
        check_given(spend, given)
        return
    with pytest.raises(ValueError, match=why):
        check_given(spend, given)


@pytest.mark.parametrize("by_file", [False, True])
def test_options_count_as_given_on_the_command_line_and_in_a_file(tmp_path, by_file):
    (tmp_path / "a.toml").write_text("keep = 0.1\n" if by_file else "")
    command = ["compress", "--config", str(tmp_path / "a.toml"), "--data", "x.tar", "--out", str(tmp_path / "o")]
    command += ["--budget", "1MB", *([] if by_file else ["--keep", "0.1"])]
    with pytest.raises(ValueError, match="--keep: a --budget says"):  # though it is the default
        CliRunner().invoke(cli.main, command, catch_exceptions=False)


@pytest.mark.parametrize("content", [b"[]", b"{}", b"no json", b'{"settings": {"alpha": 1}, "points": []}'])
def test_what_no_frontier_wrote_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match="give the --out folder of `frontier`"):
        read_rule(str(tmp_path))
    (tmp_path / RULE).write_bytes(content)
    with pytest.raises(ValueError, match="is not what this version"):
        read_rule(str(tmp_path))


@pytest.mark.parametrize(("name", "arch"), [("cifar10", "convnet-d3-w32"), ("imagenette", "convnet-d4-w32")])
def test_the_published_frontiers_can_be_spent(name, arch):
    rule = read_rule(str(PUBLISHED / name))
    assert rule.settings["backbone"] == arch and rule.settings["feature_seed"] == 100
    assert rule.spend(300_000)[0] == "support-points"

"""The command line: every job explains itself, a TOML file can say everything, and a mistake is named before work starts."""

import json
import re
import subprocess
import sys
from dataclasses import asdict, fields
from importlib import import_module
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result

from ray_jobs import __main__ as cli
from ray_jobs import commands
from ray_jobs.commands import keep
from ray_jobs.options import Backbone, Compute, Data, Place, Selection

ALL = sorted(job for jobs in cli.JOBS.values() for job in jobs)
JOBS = ("ingest", "weights", "extract", "bins", "score", "sample", "write", "compress")
GROUPS = (Data, Selection, Backbone, Compute, Place)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict:
    """What the command line asks of the pipeline, which itself does not run."""
    seen: dict = {}

    def run(wanted, compute, place, last="write"):
        groups = (wanted.data, wanted.backbone, wanted.selection, compute, place)
        seen.update({k: v for group in groups for k, v in asdict(group).items()}, out=wanted.out, last=last)

    monkeypatch.setattr(keep.pipeline, "run", run)
    return seen


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, cli.several_values(arguments), terminal_width=120)


def compress(*arguments: str) -> Result:
    return invoke("compress", "--data", "/d/a.tar", "--out", "/o", *arguments)


def message(result: Result) -> str:
    """What a failed command says."""
    assert result.exit_code != 0
    return result.output + (str(result.exception) if isinstance(result.exception, ValueError) else "")


def write_toml(path: Path, values: dict) -> str:
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    return str(path)


def test_the_jobs_of_the_pipeline_are_there():
    said = invoke("--help")
    assert said.exit_code == 0 and set(JOBS) <= set(ALL)
    assert all(re.search(rf"\n  {job} +[A-Z]", said.output) for job in ALL)
    assert "..." not in said.output.partition("Options:")[2]  # every line whole


def test_the_list_of_jobs_is_that_of_the_commands():
    """One that is missing from the list could not be called."""
    made = {}
    for path in Path(commands.__path__[0]).glob("[a-z]*.py"):
        found = vars(import_module(f"ray_jobs.commands.{path.stem}")).values()
        made |= {command.name: path.stem for command in found if isinstance(command, click.Command)}
    assert made == {job: module for (_, module), jobs in cli.JOBS.items() for job in jobs}


def test_help_and_a_wrong_name_load_neither_ray_nor_torch_nor_mlflow():
    code = """
import sys
from click.testing import CliRunner
from ray_jobs.__main__ import main
assert CliRunner().invoke(main, ["--help"]).exit_code == 0
wrong = CliRunner().invoke(main, ["compres"])
assert wrong.exit_code == 2 and "compres" in wrong.output, wrong.output
print([name for name in ("ray", "torch", "mlflow", "numpy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("job", ALL)
def test_help_explains_every_option_with_its_default(job):
    said = invoke(job, "--help")
    assert said.exit_code == 0
    command = cli.main.get_command(click.Context(cli.main), job)
    assert command.help
    with click.Context(command, terminal_width=120) as context:
        for option in command.params:
            name, text = option.get_help_record(context)
            assert len(option.help) > 10, name
            assert option.opts[0] in said.output
            if option.name not in ("config", "preset"):
                assert "[default: " in text or "[required]" in text, name
            if option.default not in (None, (), False) and not option.required and option.show_default is True:
                assert f"[default: {option.default}]" in text, name


def test_help_has_the_options_of_each_dataclass_together():
    said = invoke("compress", "--help").output
    headings = [line[:-1] for line in said.splitlines() if re.fullmatch(r"[A-Z].*:", line)]
    assert headings[0] == "Options" and len(headings) == len(set(headings))
    for group in GROUPS:
        part = said.partition(f"\n{group.__doc__.partition('.')[0]}:\n")[2].partition("\n\n")[0]
        assert re.findall(r"^  --(\S+)", part, re.MULTILINE) == [f.name.replace("_", "-") for f in fields(group)]


def test_the_defaults_of_the_command_line_are_those_of_the_dataclasses(asked):
    assert compress().exit_code == 0
    expected = {k: v for group in GROUPS for k, v in asdict(group()).items()}
    assert asked == expected | {"data": ("/d/a.tar",), "out": "/o", "last": "write"}


@pytest.mark.parametrize("job", [job for job in JOBS if job not in ("compress", "write")])
def test_each_stage_is_a_job_that_ends_with_it(asked, job):
    assert invoke(job, "--data", "/d/a.tar").exit_code == 0
    assert asked["last"] == job and asked["out"] is None


def every_option() -> dict:
    """Every option of compress with a value that is not its default."""
    values: dict = {"out": "/out", "data": ["/d/a.tar", "/d/b.tar"]}
    for group in GROUPS:
        for f in fields(group):
            choices = f.metadata["choices"]
            if f.name == "data":
                continue
            if choices:
                values[f.name] = next(choice for choice in choices if choice != f.default)
            elif isinstance(f.default, bool):
                values[f.name] = not f.default
            elif isinstance(f.default, int | float):
                values[f.name] = abs(f.default) / 2 if isinstance(f.default, float) else f.default + 3
            else:
                values[f.name] = f"/given/{f.name}"
    return values


@pytest.mark.parametrize("spelling", ["a_b", "a-b"])
def test_a_toml_file_gives_every_option(asked, tmp_path, spelling):
    values = every_option()
    named = {key.replace("_", spelling[1]): value for key, value in values.items()}
    said = invoke("compress", "--config", write_toml(tmp_path / "c.toml", named))
    assert said.exit_code == 0, message(said)
    assert asked == values | {"data": ("/d/a.tar", "/d/b.tar"), "last": "write"}


def test_one_value_in_a_toml_file_needs_no_list(asked, tmp_path):
    config = write_toml(tmp_path / "c.toml", {"data": "/d/only.tar", "out": "/o"})
    assert invoke("compress", "--config", config).exit_code == 0
    assert asked["data"] == ("/d/only.tar",)


@pytest.mark.parametrize("first", [True, False])
def test_the_command_line_wins_over_the_file(asked, tmp_path, first):
    config = ["--config", write_toml(tmp_path / "c.toml", {"keep": 0.5, "bins": 7, "data": ["/c.tar"], "out": "/c"})]
    spoken = ["--keep", "0.25", "--data", "/a.tar", "/b.tar"]
    assert invoke("compress", *(config + spoken if first else spoken + config)).exit_code == 0
    assert (asked["keep"], asked["bins"], asked["data"], asked["out"]) == (0.25, 7, ("/a.tar", "/b.tar"), "/c")


def test_a_table_of_the_file_is_for_its_job_alone(asked, tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('seed = 4\n[bins]\nbins = 6\n[compress]\nout = "/o"\nbins = 8\n')
    for job, bins in (("bins", 6), ("compress", 8), ("score", 10)):
        assert invoke(job, "--data", "/a.tar", "--config", str(path)).exit_code == 0
        assert (asked["bins"], asked["seed"]) == (bins, 4)


@pytest.mark.parametrize("key", ["kept", "keep_ratio", "config", "help", "from_path"])
def test_an_unknown_key_of_the_file_is_an_error(asked, tmp_path, key):
    config = write_toml(tmp_path / "c.toml", {"keep": 0.5, key: "x"})
    said = message(compress("--config", config))
    assert config in said and f"unknown option {key}" in said and not asked


@pytest.mark.parametrize(
    ("key", "value"), [("keep", "much"), ("bins", 2.5), ("method", "best"), ("keep", 7), ("bins", [3])]
)
def test_a_wrong_value_in_the_file_is_an_error_that_names_the_option(asked, tmp_path, key, value):
    assert f"--{key}" in message(compress("--config", write_toml(tmp_path / "c.toml", {key: value}))) and not asked


def test_a_file_that_is_not_there_or_no_toml(asked, tmp_path):
    assert "none.toml" in message(compress("--config", str(tmp_path / "none.toml")))
    (tmp_path / "bad.toml").write_text("keep = = 1")
    assert "bad.toml" in message(compress("--config", str(tmp_path / "bad.toml"))) and not asked


def test_a_preset_gives_defaults_that_the_file_and_the_command_line_override(asked, tmp_path):
    assert compress("--preset", "reference").exit_code == 0
    assert (asked["allocation"], asked["diversity"], asked["balance"]) == ("code", "code", "none")
    config = write_toml(tmp_path / "c.toml", {"preset": "reference", "diversity": "log"})
    for arguments in (["--config", config], ["--preset", "reference", "--config", config]):
        assert compress("--allocation", "share", *arguments).exit_code == 0
        assert (asked["allocation"], asked["diversity"], asked["balance"]) == ("share", "log", "none")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            ["j", "--data", "a", "b", "c", "--keep", "1"],
            ["j", "--data", "a", "--data", "b", "--data", "c", "--keep", "1"],
        ),
        (["j", "--data", "a", "--data", "b"], ["j", "--data", "a", "--data", "b"]),
        (
            ["j", "--train", "a", "b", "--test", "c", "d"],
            ["j", "--train", "a", "--train", "b", "--test", "c", "--test", "d"],
        ),
        (["j", "--keep", "0.1", "-h"], ["j", "--keep", "0.1", "-h"]),
        (["j", "--data=a", "--out", "o"], ["j", "--data=a", "--out", "o"]),
    ],
)
def test_several_values_after_one_option(given, expected):
    assert cli.several_values(given) == expected


@pytest.mark.parametrize("keep", ["0", "1.5", "-0.1", "nan", "inf", "much"])
def test_a_share_that_is_none_is_an_error(asked, keep):
    assert "--keep" in message(compress("--keep", keep)) and not asked


@pytest.mark.parametrize(
    ("option", "value"),
    [("--alpha", "1.1"), ("--alpha", "nan"), ("--bins", "0"), ("--bins", "1.5"), ("--temperature", "0"),
     ("--temperature", "nan"), ("--actors", "-1"), ("--cpus-per-actor", "-1"), ("--cpus-per-actor", "nan"),
     ("--batch-size", "0"), ("--threads", "-2"), ("--train-workers", "0")],
)  # fmt: skip
def test_a_number_outside_its_range_is_an_error_that_names_the_option(asked, option, value):
    assert option in message(compress(option, value)) and not asked


@pytest.mark.parametrize("method", ["prefix", "support-points"])
def test_the_head_of_each_class_is_not_that_of_all_images(asked, method):
    assert "use --scope class" in message(compress("--method", method, "--scope", "global")) and not asked


@pytest.mark.parametrize("group", GROUPS)
def test_another_choice_is_an_error_on_the_command_line_and_in_python(asked, group):
    for f in fields(group):
        if f.metadata["choices"]:
            option = f"--{f.name.replace('_', '-')}"
            said = message(compress(option, "other"))
            assert option in said and all(choice in said for choice in f.metadata["choices"])
            with pytest.raises(ValueError, match=f"{option} other: expected one of"):
                group(**{f.name: "other"})
    assert not asked


@pytest.mark.parametrize("arguments", [["compress", "--data", "/a.tar"], ["compress", "--out"], ["compres"],
                                       ["bins", "--data", "/a.tar", "--out", "/o"]])  # fmt: skip
def test_a_command_that_is_not_whole_or_not_known(asked, arguments):
    result = invoke(*arguments)
    assert result.exit_code == 2 and "Error: " in result.output and not asked


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--data", "shards/a.tar"], "--data"),
        (["--data", "/abs/a.tar", "s3://bucket/b.tar", "shards/c.tar"], "--data"),
        (["--data", "/abs/a.tar", "--out", "out"], "--out"),
        (["--data", "/abs/a.tar", "--store", "./runs"], "--store"),
        (["--data", "/abs/a.tar", "--classes", "classes.txt"], "--classes"),
        (["--data", "/abs/a.tar", "--embeddings", "e.npy"], "--embeddings"),
    ],
)
def test_a_relative_place_in_a_submitted_job_is_an_error_that_names_the_option(asked, monkeypatch, arguments, option):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    said = message(invoke("compress", "--out", "/o", "--store", "/s", *arguments))
    assert said.startswith(f"{option} ") and "submitted job" in said and "temporary copy" in said and not asked


def test_the_default_store_is_relative_and_so_refused_in_a_submitted_job(asked, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert message(compress()).startswith("--store ./runs") and not asked
    assert message(invoke("status")).startswith("--store ./runs")


def test_absolute_and_remote_places_go_through_in_a_submitted_job(asked, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    places = ["--data", "/a.tar", "s3://b/c.tar", "file:///d.tar", "--out", "gs://b/o", "--store", "s3://b/runs"]
    assert invoke("compress", *places).exit_code == 0 and asked["out"] == "gs://b/o"


def test_relative_weights_in_a_submitted_job_are_refused_and_names_are_not(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    (tmp_path / "a.tar").write_bytes(b"")

    def stop(*_args, **_more):
        raise ValueError("the places are checked")

    monkeypatch.setattr("ray_jobs.job.Store.check_writable", stop)
    call = ["compress", "--data", f"{tmp_path}/a.tar", "--out", "/o", "--store", "/s", "--weights"]
    assert message(invoke(*call, "w.pt")).startswith("--weights w.pt")
    for weights in ("train:3", "IMAGENET1K_V1", "/abs/w.pt"):
        assert message(invoke(*call, weights)) == "the places are checked"


def test_outside_of_a_submitted_job_relative_places_are_fine(asked, monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert invoke("compress", "--data", "a.tar", "--out", "out").exit_code == 0


def test_a_mistake_is_one_line_and_no_traceback(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.start(["compress", "--data", "/a.tar", "--out", "/o", "--keep", "2"])
    said = capsys.readouterr()
    assert stopped.value.code == 1 and said.out == ""
    assert said.err.startswith("Error: --keep 2.0: expected") and said.err.count("\n") == 1


def test_a_fault_of_the_program_itself_keeps_its_traceback(monkeypatch):
    def fault(*_args):
        raise NotImplementedError("a fault of ours")

    monkeypatch.setattr(keep.pipeline, "run", fault)
    with pytest.raises(NotImplementedError):
        cli.start(["compress", "--data", "/a.tar", "--out", "/o"])


def test_a_full_gpu_is_told_with_the_ways_out(capsys, monkeypatch):
    def full(*_args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nProcess 1 has the rest.")

    monkeypatch.setattr(keep.pipeline, "run", full)
    with pytest.raises(SystemExit):
        cli.start(["compress", "--data", "/a.tar", "--out", "/o"])
    said = capsys.readouterr().err
    assert said.startswith("Error: a GPU's memory is full: ") and said.count("\n") == 1
    assert all(way in said for way in ("--train-batch", "--image-size", "--gpus-per-training 1", "2.00 GiB"))


def test_missing_shards_are_named_before_a_cluster_is_started(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("ray_jobs.cluster.ray.init", lambda **_: pytest.fail("a cluster is started"))
    with pytest.raises(SystemExit):
        cli.start(
            ["compress", "--data", f"{tmp_path}/a-{{0..1}}.tar", "--out", f"{tmp_path}/o", "--store", f"{tmp_path}/s"]
        )
    assert f"missing shards: {tmp_path}/a-0.tar" in capsys.readouterr().err


def test_ray_that_finds_no_time_to_start_is_no_traceback(capsys, tmp_path, monkeypatch):
    def slow(**_options):
        raise Exception("The current node timed out during startup.")  # as Ray does, of no type of its own

    monkeypatch.setattr("ray_jobs.cluster.ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray_jobs.cluster.ray.init", slow)
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(SystemExit):
        cli.start(["ingest", "--data", f"{tmp_path}/a.tar", "--store", f"{tmp_path}/s"])
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "Error: Ray did not start; run the command again: The current node timed out during startup."


def test_ingest_makes_shards_first_and_then_reads_them(asked, monkeypatch):
    made = []
    monkeypatch.setattr(keep, "convert", lambda wanted: made.append(wanted) or ["/shards/train-*.tar"])
    said = invoke("ingest", "--source", "cifar10", "--from", "/cifar", "--out", "/shards")
    assert said.exit_code == 0, message(said)
    assert (made[0].source, made[0].from_path, made[0].out) == ("cifar10", "/cifar", "/shards")
    assert asked["data"] == ("/shards/train-*.tar",) and asked["last"] == "ingest"


def test_an_estimate_of_what_a_frontier_may_choose_is_an_error():
    assert "--estimate: leave --frontier out" in message(compress("--estimate", "--budget", "1MB", "--frontier", "/f"))

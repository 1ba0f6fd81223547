"""What is asked of a GPU: all of it holds of a CPU, and a difference is told."""

import sys

import pytest

from tests.bench import devices


@pytest.fixture
def asked(monkeypatch, settled_arithmetic):
    def ask(*names: str) -> int:
        argv = ["devices", "--device", "cpu", "--images", "200", "--steps", "2", "--only", *names]
        monkeypatch.setattr(sys, "argv", argv)
        return devices.main()

    return ask


def test_a_cpu_agrees_with_itself(asked, monkeypatch, capsys):
    monkeypatch.setattr(devices, "NETWORKS", (devices.ARCH,))
    assert asked(*devices.CHECKS) == 0
    told = capsys.readouterr().out
    assert told.count("ok     ") == 22 and told.endswith("all hold\n")


def test_a_device_that_decides_otherwise_fails(asked, monkeypatch, capsys):
    right, calls = devices.graphcut_bins, []

    def wrong(*args, **settings):
        bins, ranks = right(*args, **settings)
        calls.append(settings["device"])
        bins[:2] += len(calls) % 2
        return bins, ranks

    monkeypatch.setattr(devices, "graphcut_bins", wrong)
    assert asked("bins") == 1
    told = capsys.readouterr().out
    assert (
        told.count("FAILED bins, scope ") == 2 and ": 2 bins and 0 ranks differ" in told and "2 checks failed" in told
    )


def test_a_training_that_does_not_repeat_fails(asked, monkeypatch, capsys):
    right, seeds = devices.train, iter(range(100))

    def loose(model, batches, per_epoch, recipe, transform, _seed, *rest, **settings):
        return right(model, batches, per_epoch, recipe, transform, next(seeds), *rest, **settings)

    monkeypatch.setattr(devices, "NETWORKS", (devices.ARCH,))
    monkeypatch.setattr(devices, "train", loose)
    assert asked("training") == 1
    assert f"FAILED training of {devices.ARCH}, twice: " in capsys.readouterr().out

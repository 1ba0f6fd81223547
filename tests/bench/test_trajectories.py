"""Texture against trajectory distance: the noise floor is another order of batches, and --out holds what is printed."""

import json
import sys

import pytest
import torch

from adq.extractor import input_transform
from adq.randomness import torch_generator
from adq.recipe import Recipe
from tests.bench import trajectories

ARCH = "convnet-d2-w8"


@pytest.fixture
def images():
    """Noise of two classes, uint8 [N, S, S, 3], and labels, as `load` gives them."""
    generator = torch_generator(0, "trajectories")
    return torch.randint(0, 256, (200, 16, 16, 3), generator=generator, dtype=torch.uint8), torch.arange(200) % 2


def test_the_floor_has_the_same_start_and_another_order(images):
    data, recipe = trajectories.examples(*images), Recipe(steps=10, batch_size=50, lr=0.05)
    orders = (None, 0, 5)
    whole, same, other = (
        trajectories.trajectory(data, recipe, input_transform(ARCH, 16), ARCH, 0, "cpu", order)[1] for order in orders
    )
    assert trajectories.distance(same, whole) == 0
    assert torch.equal(other[0], whole[0]) and trajectories.distance(other, whole) > 0


def test_the_lines_are_stored(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trajectories, "load", lambda *_: images)
    out = tmp_path / "distances.jsonl"
    arguments = ["--arch", ARCH, "--steps", "10", "--seeds", "1", "--controls", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["trajectories", *arguments])
    trajectories.main()
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    stored = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["part"] for line in stored] == [*(f"bin {n}" for n in range(1, 11)), "random 1", trajectories.FLOOR]
    assert [{k: v for k, v in line.items() if k != "settings"} for line in stored] == printed[:-1]
    assert {line["settings"]["steps"] for line in stored} == {10}
    assert stored[-1]["images"] == 200 and printed[-1]["noise_floor"] == stored[-1]["distance"] > 0

"""Recipe files: those that come along are whole, a mistake names file and field, and a recipe overfits a few real images."""

import tomllib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from adq.extractor import input_transform
from adq.images import decode
from adq.models import OWN, build
from adq.training import Recipe, TensorImages, correct, default_recipe, epoch_batches, steps_per_epoch, train
from ray_jobs import recipe_files
from ray_jobs.evaluate import Evaluation
from tests.ray_jobs.conftest import real_samples

ROOT = Path(__file__).resolve().parents[2]
NAMES = (
    "cifar10", "cifar10-cpu", "cifar10-steps", "cifar100", "cifar100-steps", "distilled", "imagenet", "imagenet-plain",
    "imagenet-steps", "imagenette-cpu", "tiny-imagenet", "tiny-imagenet-steps",
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


def written(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def test_the_recipes_that_come_along_are_packaged():
    assert tuple(recipe_files.names()) == NAMES
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packaged = {path for pattern in settings["ray_jobs"] for path in (ROOT / "ray_jobs").glob(pattern)}
    assert packaged == set(recipe_files.FOLDER.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_valid_for_every_network(name):
    file = recipe_files.read(name)
    recipes = {arch: file.recipe(arch) for arch in OWN}
    assert all(recipe != recipes["resnet18"] for arch, recipe in recipes.items() if arch in file.tables)
    by_steps = {recipe.steps is not None for recipe in recipes.values()}
    assert len(by_steps) == 1, "every network is trained for epochs, or every one for steps"
    text = file.path.read_text()
    assert text.startswith("# ") and f"--recipe {name}" in text, "a head that says what it is, and the command"


def test_cifar10_is_the_recipe_of_the_paper_and_our_default():
    file = recipe_files.read("cifar10")
    assert file.recipe("resnet18") == Recipe(
        epochs=200, batch_size=128, lr=0.1, momentum=0.9, weight_decay=5e-4, optimizer="sgd", schedule="cosine",
        augment="crop-flip",
    )  # fmt: skip
    assert {arch: file.recipe(arch) for arch in OWN} == {arch: default_recipe(arch, 32) for arch in OWN}


def test_fixed_steps_are_the_epochs_of_the_whole_set():
    for name, images in (("cifar10", 50_000), ("cifar100", 50_000), ("tiny-imagenet", 100_000)):
        for arch in OWN:
            recipe = recipe_files.read(name).recipe(arch)
            total = recipe.total_steps(steps_per_epoch(images, recipe.batch_size))
            assert recipe_files.read(f"{name}-steps").recipe(arch) == replace(recipe, epochs=None, steps=total)
    modern = recipe_files.read("imagenet-steps").recipe("resnet50")
    assert modern.steps == 100 * steps_per_epoch(1_281_167, modern.batch_size)


def test_warm_ups_are_whole_where_the_whole_set_is_trained_on():
    images = {"cifar10": 50_000, "cifar100": 50_000, "tiny-imagenet": 100_000, "imagenet": 1_281_167}
    for name, count in images.items():
        for arch in OWN:
            recipe = recipe_files.read(name).recipe(arch)
            total = recipe.total_steps(steps_per_epoch(count, recipe.batch_size))
            assert recipe.warmup_steps <= total // 10


def test_a_table_is_for_the_networks_whose_names_begin_with_its_own(tmp_path):
    text = """
        epochs = 3
        lr = 1
        [convnet]
        lr = 0.2
        weight_decay = 0.0
        [convnet-d4]
        steps = 7
        [vit]
        optimizer = "adamw"
    """
    file = recipe_files.read(written(tmp_path, text))
    assert file.recipe("resnet18") == Recipe(epochs=3, lr=1.0)
    assert type(file.recipe("resnet18").lr) is float, "what is equal has the same digest"
    assert file.recipe("convnet-d3-w32") == Recipe(epochs=3, lr=0.2, weight_decay=0.0)
    assert file.recipe("convnet-d4-w8") == Recipe(steps=7, lr=1.0), "the longest name counts, and alone"
    assert file.recipe("vit_b_16") == file.recipe("vit") == Recipe(epochs=3, lr=1.0, optimizer="adamw")


def test_a_recipe_takes_from_its_base_what_it_does_not_say(tmp_path):
    (tmp_path / "theirs.toml").write_text(
        """
        base = "imagenet"
        lr = 0.2
        [swin]
        clip_norm = 1.0
        [resnet18]
        epochs = 7
        """
    )
    ours, theirs = recipe_files.read("imagenet"), recipe_files.read(str(tmp_path / "theirs.toml"))
    assert theirs.recipe("resnet50") == replace(ours.recipe("resnet50"), lr=0.2)
    assert theirs.recipe("swin") == replace(ours.recipe("swin"), clip_norm=1.0), "field by field"
    assert theirs.recipe("vit") == ours.recipe("vit") and theirs.recipe("vit").epochs == 300
    assert theirs.recipe("resnet18") == replace(theirs.recipe("resnet50"), epochs=7)
    mine = recipe_files.read(written(tmp_path, 'base = "./theirs.toml"\nsteps = 9\n[convnet-d4]\nepochs = 2'))
    for arch in OWN:
        expected = replace(theirs.recipe(arch), epochs=None, steps=9)
        if arch == "convnet-d4":
            expected = replace(theirs.recipe("resnet50"), epochs=2)
        assert mine.recipe(arch) == expected, arch


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("epochs = 3\nrate = 0.1", r"mine\.toml: rate: no such field; known: epochs, steps, batch_size"),
        ("epochs = 3\n[vit]\nwarm_up = 1", r"mine\.toml: \[vit\]: warm_up: no such field"),
        ("epochs = 3\n[resnet81]\nlr = 0.1", r"mine\.toml: \[resnet81\]: no network's name begins so; known: resnet18"),
        ("epochs = 2.5", r"mine\.toml: epochs: expected a whole number, not 2\.5"),
        ("epochs = true", r"mine\.toml: epochs: expected a whole number, not True"),
        ("epochs = 3\n[vit]\nlr = '0.1'", r"mine\.toml: \[vit\]: lr: expected a number, not '0\.1'"),
        ("epochs = 3\nnesterov = 1", r"mine\.toml: nesterov: expected true or false, not 1"),
        ("epochs = 3\n[swin]\noptimizer = 'lamb'", r"mine\.toml: \[swin\]: optimizer is one of sgd, adamw, not 'lamb'"),
        ("lr = 0.1", r"mine\.toml: set epochs or steps, one of them"),
        ("epochs = = 3", r"mine\.toml: .*line 1"),
        ("base = 3", r"mine\.toml: base: expected a text, not 3"),
        ("base = 'cifar11'", r"mine\.toml: base: cifar11: expected a TOML file, or one of cifar10"),
        ("base = './mine.toml'", r"mine\.toml: base: \./mine\.toml: a recipe cannot be based on itself"),
        ("base = 'gone.toml'", r"mine\.toml: base: gone\.toml: .*No such file"),
        ("base = 'cifar10'\nlr = -1", r"mine\.toml: need lr > 0"),
    ],
)
def test_a_mistake_names_the_file_and_the_field(tmp_path, text, told):
    with pytest.raises(ValueError, match=told):
        Evaluation(recipe=written(tmp_path, text))


def test_a_recipe_that_is_not_there():
    with pytest.raises(ValueError, match=r"--recipe cifar11: expected a TOML file, or one of cifar10, cifar10-cpu"):
        Evaluation(recipe="cifar11")
    with pytest.raises(ValueError, match=r"--recipe none/here\.toml: .*No such file"):
        Evaluation(recipe="none/here.toml")


def test_the_command_line_wins_over_the_file():
    file = recipe_files.read("imagenet").recipe("resnet50")
    assert Evaluation(recipe="imagenet").recipe_for("resnet50", 224) == file
    assert Evaluation(recipe="imagenet", steps=9).recipe_for("resnet50", 224) == replace(file, epochs=None, steps=9)
    assert Evaluation(recipe="cifar10-steps", epochs=2).recipe_for("vit", 32).epochs == 2
    smaller = Evaluation(recipe="imagenet", train_batch=256).recipe_for("resnet50", 224)
    assert (smaller.batch_size, smaller.lr_at(50_000, 10**9)) == (256, pytest.approx(0.125)), "the rate goes with it"
    given = Evaluation(recipe="imagenet", train_batch=256, lr=0.3).recipe_for("resnet50", 224)
    assert given.lr_at(50_000, 10**9) == pytest.approx(0.3), "a given rate is not scaled"


def first_images(count: int, every: int) -> TensorImages:
    """Real images, of which only each `every`-th row and column is taken."""
    samples = real_samples(count)
    images = np.stack([np.asarray(decode(image))[::every, ::every] for _, image, _ in samples])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return TensorImages(pixels, np.array([label for _, _, label in samples]))


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "arch", "steps", "every"), [("cifar10-cpu", "convnet-d3-w32", 50, 1), ("distilled", "resnet18", 50, 4)]
)
def test_a_recipe_overfits_a_few_real_images(name, arch, steps, every):
    images = first_images(32, every)
    assert len(np.unique(images.labels)) == 10
    recipe = replace(recipe_files.read(name).recipe(arch), steps=steps)
    side = images.images.shape[-1]
    torch.manual_seed(0)
    model, transform, everything = build(arch, 10, side), input_transform(arch, side), np.arange(32)
    before = correct(model, images, everything, transform, "cpu").mean()
    train(model, partial(epoch_batches, images, recipe, 0), 1, recipe, transform, 0, "cpu")
    after = correct(model, images, everything, transform, "cpu").mean()
    assert before < 0.4 and after > 0.9

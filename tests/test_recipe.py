"""Recipes: values that are checked, written and read, and the learning rate of every single step."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from pocketformer.architecture import Architecture, SearchSpace
from pocketformer.errors import UserError
from pocketformer.pipelines.trainings import default_recipe
from pocketformer.training.recipe import RECIPES, Recipe

NAMED = pytest.mark.parametrize("name", RECIPES)


@pytest.mark.parametrize("epochs", [300, 450])
def test_the_learning_rate_of_every_step_on_imagenet(epochs):
    """1e-3 · batch / 1024 reached after 5 epochs in equal steps, then half a cosine to 1e-5."""
    each, recipe = 1251, Recipe.imagenet(epochs)
    steps, warmup = epochs * each, 5 * each
    assert recipe.steps(each) == steps
    rates = np.array([recipe.rate(step, steps, each, 1024) for step in range(steps)])
    s = np.arange(steps)
    cosine = np.cos((s - warmup) / (steps - warmup) * np.pi)
    expected = np.where(s < warmup, 1e-3 * (s + 1) / warmup, 0.5 * (1e-3 + 1e-5) + 0.5 * (1e-3 - 1e-5) * cosine)
    np.testing.assert_allclose(rates, expected, rtol=1e-10)
    doubled = [recipe.rate(step, steps, each, 2048) for step in range(warmup)]
    np.testing.assert_allclose(doubled, 2 * rates[:warmup])


def test_the_rate_of_trainings_shorter_than_their_warmup_is_still_a_rate():
    recipe = Recipe.small_images(epochs=1, warmup_epochs=5)
    assert [recipe.rate(step, 1, 1, 128) > 0 for step in range(1)] == [True]
    rates = [recipe.rate(step, 4, 4, 1024) for step in range(4)]
    assert rates[:3] == pytest.approx([2e-2 / 3, 4e-2 / 3, 2e-2])
    assert all(0 < rate <= 2e-2 for rate in rates)


def test_imagenet_is_table_5():
    """V2 Table 5 and what the published code has beside it."""
    recipe = Recipe.imagenet()
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate, recipe.warmup_epochs) == (300, 1024, 1e-3, 5)
    assert (recipe.weight_decay, recipe.clip, recipe.label_smoothing) == (0.025, 0.01, 0.1)
    assert (recipe.mixup, recipe.cutmix, recipe.erase, recipe.repeats) == (0.8, 1.0, 0.25, 3)
    assert recipe.randaugment == "rand-m9-mstd0.5-inc1"
    assert (recipe.ema, recipe.min_lr, recipe.layer_scale) == (0.99996, 1e-5, 1e-5)
    published = {name: Architecture.named(f"efficientformerv2_{name}") for name in ("s0", "s1", "s2", "l")}
    rates = {name: recipe.drop_path_of(architecture) for name, architecture in published.items()}
    assert rates == {"s0": 0, "s1": 0, "s2": 0.02, "l": 0.1}
    assert recipe.drop_path_of(SearchSpace.named("pocket28").largest) == 0
    assert Recipe.imagenet(drop_path=0.3).drop_path_of(published["s0"]) == 0.3


def test_a_recipe_is_a_value():
    recipe = Recipe.finetune()
    with pytest.raises(FrozenInstanceError):
        recipe.epochs = 3
    assert recipe == Recipe.named("finetune")
    assert hash(recipe) == hash(Recipe.finetune())
    assert Recipe(crop_scale=[0.5, 1]) == Recipe(crop_scale=(0.5, 1))
    assert Recipe(batch_size=64.0).batch_size.__class__ is int


@NAMED
def test_yaml_round_trip(name, tmp_path):
    recipe = Recipe.named(name, epochs=7.5, crop_scale=(0.25, 0.75))
    recipe.save(tmp_path / "mine.yaml")
    assert Recipe.load(tmp_path / "mine.yaml") == recipe == Recipe.named(str(tmp_path / "mine.yaml"))
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@NAMED
def test_a_file_changes_the_recipe_that_it_is_based_on(name, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"base: {name}\nlearning_rate: 1e-3  # YAML takes that for a text\nema: 0.5\n")
    assert Recipe.load(tmp_path / "mine.yaml") == Recipe.named(name, learning_rate=1e-3, ema=0.5)
    assert Recipe.named(str(tmp_path / "mine.yaml"), epochs=2).epochs == 2


def test_entries_as_text():
    changed = Recipe.imagenet().with_text(["mixup=0.2", "drop_path=null", "crop_scale=[0.2, 0.9]", "min_lr=1e-6"])
    assert changed == Recipe.imagenet(mixup=0.2, crop_scale=(0.2, 0.9), min_lr=1e-6)
    for text, words in (
        ("mixup", "--set mixup: write it as NAME=VALUE"),
        ("mixup=[", "'[' is not a value"),
        ("mixip=1", "--set: unknown entry 'mixip'; did you mean mixup?"),
        ("epochs=-1", "--set: epochs must be above zero, not -1"),
    ):
        with pytest.raises(UserError) as told:
            Recipe().with_text([text])
        assert words in str(told.value)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"epochs": 0}, "epochs must be above zero, not 0"),
        ({"epochs": "many"}, "epochs must be a number, not 'many'"),
        ({"epochs": True}, "epochs must be a number, not True"),
        ({"batch_size": -1}, "batch_size must be above zero"),
        ({"batch_size": 1.5}, "batch_size must be a whole number, not 1.5"),
        ({"learning_rate": float("nan")}, "learning_rate must be above zero, not nan"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"drop_path": -0.1}, "drop_path must be at least 0 and below 1"),
        ({"label_smoothing": 1}, "label_smoothing"),
        ({"ema": 1.0}, "ema must be at least 0 and below 1, not 1.0"),
        ({"layer_decay": 1.1}, "layer_decay must be above 0 and at most 1"),
        ({"freeze": -1}, "freeze must be at least zero"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"repeats": float("inf")}, "repeats must be at least 1"),
        ({"flip": 1}, "flip must be true or false, not 1"),
        ({"crop_scale": 0.5}, "crop_scale must be two shares"),
        ({"crop_scale": (0.9, 0.1)}, "scale"),
        ({"randaugment": "rand-m9-mtsd0.5"}, "randaugment"),
        ({"mixup": 0.8, "batch_size": 5}, "even batch_size, not 5"),
    ],
)
def test_recipe_refuses(wrong, words):
    with pytest.raises(UserError) as told:
        Recipe(**wrong)
    assert words in str(told.value)
    assert "\n" not in str(told.value)
    with pytest.raises(UserError) as told:
        Recipe.from_dict(wrong, "mine.yaml")
    assert str(told.value).startswith("mine.yaml: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no entries"),
        ("- epochs", "holds no entries"),
        ("epochs: [", "is not YAML"),
        ("base: imagnet", "base 'imagnet' is no recipe; known: imagenet, small-images, finetune"),
        ("base: [imagenet]", "base ['imagenet'] is no recipe"),
        ("epoch: 3", "unknown entry 'epoch'; did you mean epochs?"),
        ("3: 3", "unknown entry 3; known: epochs, "),
        ("mixup: much", "mixup must be a number, not 'much'"),
    ],
)
def test_files_that_are_refused(tmp_path, text, words):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as told:
        Recipe.load(tmp_path / "mine.yaml")
    assert words in str(told.value)
    assert str(tmp_path / "mine.yaml") in str(told.value)
    assert "\n" not in str(told.value)


def test_recipes_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"no recipe 'imagnet'; known: imagenet, small-images, finetune, or a \.yaml"):
        Recipe.named("imagnet")
    with pytest.raises(UserError, match=r"mine\.yaml cannot be read: No such file"):
        Recipe.named(str(tmp_path / "mine.yaml"))


def test_the_recipe_that_suits(tmp_path):
    small, large = tmp_path / "small.json", "efficientformerv2_s0"
    SearchSpace.named("pocket64").smallest.save(small)
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "search.jsonl").touch()
    weights, search = str(tmp_path / "weights.pth"), str(tmp_path / "search")
    assert [default_recipe(large, init) for init in (None, weights, search)] == ["imagenet", "finetune", "small-images"]
    assert {default_recipe(str(small), init) for init in (None, weights, search)} == {"small-images"}

"""The few images that files are verified and calibrated on: of all classes alike, the same each time, readable ones."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench_of_formats import classes_in, write_images
from pocketformer.errors import UserError
from pocketformer.pipelines.samples import in_turn, sample
from pocketformer.training.batches import OURS
from pocketformer.training.data import open_data


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=300), st.integers(1, 400), st.integers(0, 9))
def test_no_class_is_seen_less_than_another_while_it_has_images(labels, count, seed):
    labels = np.array(labels)
    order = in_turn(labels, seed)
    assert sorted(order) == list(range(len(labels)))
    assert (order == in_turn(labels, seed)).all()
    seen, there = (np.bincount(some, minlength=61) for some in (labels[order[:count]], labels))
    left = seen < there
    assert not left.any() or seen[left].min() >= seen.max() - 1
    assert seen.sum() == min(count, len(labels))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("photos") / "data")


def opened(folder: Path, **more):
    return open_data(folder, size=(16, 16), bad_images="skip", **more).search


@pytest.mark.parametrize("stream", [False, True])
def test_streamed_or_not_the_images_are_the_same(photos, stream):
    split = opened(photos, stream=stream)
    images, labels = sample(split, 31, (16, 16), OURS, 0)
    assert sorted(classes_in(images)) == sorted(np.bincount(labels)) == [10, 10, 11]
    again, _ = sample(opened(photos, stream=not stream), 31, (16, 16), OURS, 0)
    assert (images == again).all()
    other, _ = sample(split, 31, (16, 16), OURS, 1)
    assert not (images == other).all()
    assert len(sample(split, 500, (16, 16), OURS, 0)[1]) == 120


def test_images_that_cannot_be_read_are_passed_over(photos, tmp_path):
    copy = Path(shutil.copytree(photos, tmp_path / "copy"))
    for path in sorted((copy / "train" / "dark").iterdir())[2:]:
        path.write_bytes(path.read_bytes()[:60] + path.name.encode())
    images, labels = sample(opened(copy, stream=True), 32, (16, 16), OURS, 0)
    assert len(images) == 32
    assert np.bincount(labels, minlength=3)[0] <= 2
    for path in copy.glob("train/*/*.png"):
        path.write_bytes(path.read_bytes()[:60] + path.name.encode())
    with pytest.raises(UserError, match="none of the 120 images of search can be read"):
        sample(opened(copy, stream=True), 32, (16, 16), OURS, 0)

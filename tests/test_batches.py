"""Batches of images in memory: a function of seed and step, crops as torchvision's, and the order of evaluation."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tvf

from pocketformer.errors import UserError
from pocketformer.training.batches import (
    Augmentation,
    TrainBatches,
    centre_crop,
    crop,
    erase,
    eval_batches,
    normalise,
    stored_size,
)
from pocketformer.training.data import Split


def smooth_split(count: int, size: tuple[int, int]) -> Split:
    """Images of slow waves, on which two ways to interpolate nearly agree."""
    y, x = np.mgrid[: size[0], : size[1]] / max(size)
    waves = [[np.sin(3 * x + i + c) + np.cos(2 * y * (c + 1) - i) for c in range(3)] for i in range(count)]
    images = torch.from_numpy(((np.array(waves) + 2) * 63).astype(np.uint8))
    return Split("fit", images, torch.arange(count) % 3, torch.arange(count))


def test_a_batch_is_a_function_of_seed_and_step():
    split = smooth_split(50, (20, 24))
    augmentation = Augmentation(erase=0.5)
    batches = TrainBatches(split, 8, (16, 18), augmentation, seed=3)
    assert batches.steps_per_epoch == 6
    forward = [batches.batch(step) for step in range(14)]
    x, y = forward[0]
    assert (x.shape, x.dtype, y.dtype) == ((8, 3, 16, 18), torch.float32, torch.int64)
    assert x.is_contiguous(memory_format=torch.channels_last)
    again = TrainBatches(split, 8, (16, 18), augmentation, seed=3)
    for step in reversed(range(14)):
        x, y = again.batch(step)
        assert torch.equal(x, forward[step][0])
        assert torch.equal(y, forward[step][1])
    assert not torch.equal(TrainBatches(split, 8, (16, 18), augmentation, 4).batch(0)[0], forward[0][0])
    epoch = torch.cat([batches.plan(step).rows for step in range(6)])
    assert len(epoch.unique()) == 48
    assert not torch.equal(epoch, torch.cat([batches.plan(step).rows for step in range(6, 12)]))
    # What befalls an image depends on the epoch and the image, not on its place in a batch.
    wide, narrow = TrainBatches(split, 50, (16, 18), augmentation, 3).plan(0), batches.plan(2)
    places = [wide.rows.tolist().index(row) for row in narrow.rows.tolist()]
    assert torch.equal(wide.boxes[places], narrow.boxes)
    assert torch.equal(wide.flips[places], narrow.flips)
    later = TrainBatches(split, 50, (16, 18), augmentation, 3).plan(1)
    assert not torch.equal(later.boxes[later.rows.argsort()], wide.boxes[wide.rows.argsort()])


def test_boxes_keep_to_their_law():
    split = Split("fit", torch.zeros(4000, 3, 30, 40, dtype=torch.uint8), torch.zeros(4000, dtype=torch.int64))
    plan = TrainBatches(split, 4000, (16, 16), Augmentation(erase=0.25), 0).plan(0)
    left, top, w, h = plan.boxes.unbind(1)
    assert min(left.min(), top.min()) >= 0
    assert (left + w).max() <= 40 + 1e-9
    assert (top + h).max() <= 30 + 1e-9
    area = w * h / 1200
    assert area.min() >= 0.35 - 1e-9
    assert (
        torch.quantile(area, torch.tensor([0.25, 0.5, 0.75], dtype=area.dtype))
        .sub(torch.tensor([0.5125, 0.675, 0.8375]))
        .abs()
        .max()
        < 0.03
    )  # uniform
    # 4:3 images: when the area is all of it, so is the box, whose aspect 4/3 is still allowed.
    assert (w / h).min() >= 3 / 4 - 1e-9
    assert (w / h).max() <= 4 / 3 + 1e-9
    assert plan.flips.float().mean().sub(0.5).abs() < 0.03
    assert (plan.holes[:, 2] > 0).float().mean().sub(0.25).abs() < 0.03


def test_crops_agree_with_torchvision_sample_by_sample():
    split = smooth_split(6, (48, 64))
    boxes = torch.tensor(
        [[0, 0, 64, 48], [8, 4, 40, 30], [20, 10, 33, 37], [30, 0, 34, 48], [1, 2, 60, 40], [5, 5, 50, 40]]
    )
    flips = torch.tensor([False, True, False, True, False, True])
    images, _ = split.take(torch.arange(6))
    ours = crop(images, boxes.double(), flips, (32, 40))
    for i, (left, top, w, h) in enumerate(boxes.tolist()):
        theirs = tvf.resized_crop(images[i].float(), top, left, h, w, [32, 40], antialias=False)
        theirs = tvf.horizontal_flip(theirs) if flips[i] else theirs
        # At the rim torchvision sees nothing beyond the box; inside it is the same bilinear rule.
        difference = (ours[i] - (theirs / 255 - 0.5) / 0.5).abs()
        assert difference[:, 1:-1, 1:-1].max() < 1e-4
        assert difference.max() < 0.03


def test_whole_image_crop_is_the_image():
    images, _ = smooth_split(4, (20, 20)).take(torch.arange(4))
    boxes = torch.tensor([[0.0, 0.0, 20.0, 20.0]]).repeat(4, 1)
    flips = torch.tensor([False, True, False, True])
    out = crop(images, boxes, flips, (20, 20))
    expected = normalise(images)
    expected[flips] = expected[flips].flip(-1)
    torch.testing.assert_close(out, expected, atol=2e-5, rtol=0)


def test_erasing_sets_boxes_to_the_mean():
    out = erase(torch.ones(2, 3, 10, 10), torch.tensor([[0.2, 0.5, 0.3, 0.2], [0.1, 0.1, 0.0, 0.5]]))
    expected = torch.ones(2, 3, 10, 10)
    expected[0, :, 5:7, 2:5] = 0
    assert torch.equal(out, expected)


def test_normalise_and_centre_crop():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(2, 3, 1, 1)
    x = normalise(images)
    assert x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(x, (images.float() / 255 - 0.5) / 0.5, atol=1e-6, rtol=0)
    assert torch.equal(centre_crop(images, (16, 16)), images)
    assert torch.equal(centre_crop(images, (10, 12)), images[..., 3:13, 2:14])
    assert stored_size((224, 192), 0.875) == (256, 219)
    with pytest.raises(UserError, match="crop share"):
        stored_size((224, 224), 1.2)


def test_eval_batches_cover_the_split_in_order():
    split = smooth_split(11, (20, 24))
    split = Split("search", split.images, split.labels, torch.tensor([1, 4, 5, 7, 10]))
    batches = eval_batches(split, 2, (16, 16))
    assert len(batches) == 3
    for _ in range(2):
        got = list(batches)
        assert [len(y) for _, y in got] == [2, 2, 1]
        assert torch.equal(torch.cat([y for _, y in got]), split.labels[split.indices])
        expected = normalise(split.images[split.indices][..., 2:18, 4:20])
        assert torch.equal(torch.cat([x for x, _ in got]), expected)
    with pytest.raises(UserError, match="stored at 20×24 px"):
        eval_batches(split, 2, (21, 16))


def test_a_small_split_is_one_batch_and_no_augmentation_is_a_centre_crop():
    split = smooth_split(5, (20, 20))
    batches = TrainBatches(split, 64, (16, 16), None, 0)
    assert batches.steps_per_epoch == 1
    x, _ = batches.batch(7)
    assert torch.equal(x, normalise(centre_crop(split.images, (16, 16)))[batches.plan(7).rows])
    with pytest.raises(UserError, match="batch size"):
        TrainBatches(split, 0, (16, 16), None, 0)
    with pytest.raises(UserError, match="scale"):
        Augmentation(scale=(0.5, 1.5))

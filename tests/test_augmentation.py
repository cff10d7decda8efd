import numpy as np
import pytest
import torch

from skunet.augmentation import augment_batch, flip_and_turn


@pytest.mark.parametrize("size", [(6, 6), (5, 7), (3, 4, 4), (2, 3, 5)])
def test_image_mask_and_weight_stay_together(size):
    masks = torch.arange(5 * np.prod(size)).reshape(5, *size)
    images = torch.stack([masks, -masks], dim=1).float()
    out, out_masks, out_weights = flip_and_turn(images, masks, masks / 2, np.random.default_rng(1))
    assert torch.equal(out[:, 0], out_masks.float())
    assert torch.equal(out[:, 1], -out_masks.float())
    assert torch.equal(out_weights, out_masks / 2)
    for before, after in zip(masks, out_masks, strict=True):
        assert sorted(before.flatten().tolist()) == sorted(after.flatten().tolist())


def test_all_eight_symmetries_of_a_square_occur_and_each_sample_has_its_own():
    mask = torch.arange(9).reshape(1, 3, 3).repeat(400, 1, 1)
    _, turned, _ = flip_and_turn(mask[:, None].float(), mask, None, np.random.default_rng(0))
    kinds, counts = np.unique(turned.reshape(400, 9), axis=0, return_counts=True)
    assert len(kinds) == 8
    assert counts.min() > 25


def test_the_generator_alone_decides():
    images = torch.rand(4, 1, 6, 6)
    first, second = (flip_and_turn(images, images[:, 0], None, np.random.default_rng(3))[0] for _ in range(2))
    assert torch.equal(first, second)


def test_what_the_user_names_is_applied():
    images, masks = torch.rand(2, 1, 4, 4), torch.zeros(2, 4, 4)
    assert augment_batch(None, images, masks, None, np.random.default_rng(0))[0] is images

    def brighten(images, masks, weights, generator):
        return images + generator.random(), masks, weights

    brighter = augment_batch(brighten, images, masks, None, np.random.default_rng(0))[0]
    assert torch.allclose(brighter - images, torch.tensor(np.random.default_rng(0).random()).float())

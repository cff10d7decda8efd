import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skunet.splits import hold_out


@given(st.integers(5, 60), st.floats(0.01, 0.99), st.integers(0, 5))
def test_parts_cover_all_images_once(n_images, share, seed):
    train, valid = hold_out(n_images, share, groups=None, seed=seed)
    assert sorted([*train, *valid]) == list(range(n_images))
    assert len(valid) == min(max(1, int(n_images * share)), n_images - 1)


@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=40), st.integers(0, 5))
def test_groups_stay_together(groups, seed):
    groups = np.array(groups)
    parts = hold_out(len(groups), 0.2, groups=groups, seed=seed)
    if len(set(groups)) < 2:
        assert parts is None
    else:
        assert not set(groups[parts[0]]) & set(groups[parts[1]])


@pytest.mark.parametrize("n_images", [1, 4])
def test_too_few_images_are_all_for_training(n_images):
    assert hold_out(n_images, 0.2, groups=None, seed=0) is None


def test_the_seed_decides():
    splits = {tuple(hold_out(20, 0.2, groups=None, seed=seed)[1]) for seed in range(5)}
    assert len(splits) > 1
    assert tuple(hold_out(20, 0.2, groups=None, seed=0)[1]) in splits

import numpy as np
import torch

from skunet.randomness import draw_seed, make_generator, seeded_torch


def test_seeds_follow_random_state():
    assert draw_seed(5) == 5
    assert draw_seed(np.random.RandomState(0)) == draw_seed(np.random.RandomState(0))
    state = np.random.RandomState(0)
    assert draw_seed(state) != draw_seed(state)
    assert draw_seed(None) != draw_seed(None)


def test_every_key_is_a_stream_of_its_own():
    draws = {tuple(make_generator(0, *key).random(3)) for key in [(0, 0), (0, 1), (1, 0), (1,), (2,), (0,)]}
    assert len(draws) == 6


def test_torch_is_seeded_inside_and_restored_after():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    inside = []
    for _ in range(2):
        with seeded_torch(3, 0, 0):
            inside.append(torch.rand(2))
    assert torch.equal(inside[0], inside[1])
    assert torch.equal(torch.rand(2), expected)


def test_of_several_gpus_the_one_that_is_asked_for_is_seeded(monkeypatch):
    current, seen = ["cuda:0"], []

    class Device:
        def __init__(self, device):
            self.device = str(device)

        def __enter__(self):
            current.append(self.device)

        def __exit__(self, *_):
            current.pop()

    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: seen.append(("get", current[-1])))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda _: seen.append(("set", current[-1])))
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda _: seen.append(("seed", current[-1])))
    with seeded_torch(3, 0, 0, device="cuda:1"):
        pass
    assert seen == [("get", "cuda:1"), ("seed", "cuda:1"), ("set", "cuda:1")]

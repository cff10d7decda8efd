"""One integer seed, from which every random draw of a fit follows."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from sklearn.utils import check_random_state

__all__ = ["draw_seed", "make_generator", "seeded_torch"]

# Draws that belong to no batch (weights, the validation split) have keys of another length than (epoch, batch).
WEIGHTS = (1,)
SPLIT = (2,)
PROBE = (3,)
CRITERION = (4,)
# Fits that run in threads of one process share the generators.
_one_at_a_time = threading.RLock()


def draw_seed(random_state: int | np.random.RandomState | None) -> int:
    """Return the seed that `random_state` stands for.

    Parameters
    ----------
    random_state : None, int or RandomState
        None draws from the operating system, an int is the seed itself, a RandomState gives one draw.

    Returns
    -------
    int
        In 0..2**32 - 1.

    Examples
    --------
    >>> draw_seed(7)
    7
    """
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    if isinstance(random_state, (int, np.integer)):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


def make_generator(seed: int, *key: int) -> np.random.Generator:
    """Return the generator of the draws named by `key`, e.g. (epoch, batch)."""
    return np.random.default_rng(_sequence(seed, key))


def _sequence(seed: int, key: tuple[int, ...]) -> np.random.SeedSequence:
    # The length is part of it: to a SeedSequence, zeros at the end make no difference.
    return np.random.SeedSequence([seed, len(key), *key])


@contextmanager
def seeded_torch(seed: int, *key: int, device: str | torch.device = "cpu") -> Iterator[None]:
    """Seed torch's global generators inside the block and restore them after it.

    For layers that know only the global generator (weight initialisation, dropout).
    """
    draw = int(_sequence(seed, key).generate_state(1, np.uint64)[0])
    # Not torch.manual_seed: it would reseed every device, also those that are not in use here.
    generators = [(torch.default_generator.get_state, torch.default_generator.set_state)]
    backend = {"cuda": torch.cuda, "mps": torch.mps}.get(torch.device(device).type)
    if backend is not None:
        generators.append((backend.get_rng_state, backend.set_rng_state))
    # Functions of torch.cuda act on the current device.
    current = torch.cuda.device(device) if backend is torch.cuda else nullcontext()
    with _one_at_a_time, current:
        states = [get_state() for get_state, _ in generators]
        try:
            torch.default_generator.manual_seed(draw)
            if backend is not None:
                backend.manual_seed(draw)
            yield
        finally:
            for (_, set_state), state in zip(generators, states, strict=True):
                set_state(state)

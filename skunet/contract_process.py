"""Checks of what an image estimator does to its process, and of what its process does to it.

What a first fit changes for good, a second one finds changed already. So these run before all others, first the one
that cannot set up a state of its own to find again.
"""

import os
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from skunet.contract import (
    ContractData,
    expect,
    expect_same_outputs,
    fit_fresh,
    make_fresh,
    need_parameter,
    predict_all,
)

# torch notes where its compiler keeps files when the first optimizer of a process is made, whoever makes it.
OF_TORCH = ("TORCHINDUCTOR_", "TRITON_")


def check_global_settings_untouched(estimator: Any, data: ContractData) -> None:
    """Settings of numpy, torch and the environment hold for the whole process, not for one estimator."""
    _expect_untouched(estimator, data, _global_settings)


def _global_settings() -> dict[str, Any]:
    return {
        "numpy.geterr()": np.geterr(),
        "torch.get_default_dtype()": torch.get_default_dtype(),
        "torch.is_grad_enabled()": torch.is_grad_enabled(),
        "torch.are_deterministic_algorithms_enabled()": torch.are_deterministic_algorithms_enabled(),
        "torch.backends.cudnn.benchmark": torch.backends.cudnn.benchmark,
        "os.environ": {name: value for name, value in os.environ.items() if not name.startswith(OF_TORCH)},
        "os.getcwd()": os.getcwd(),
    }


def check_same_seed_same_result(estimator: Any, data: ContractData) -> None:
    """One integer must decide all draws: two estimators of one random_state agree bit for bit."""
    need_parameter(estimator, "random_state")
    first, second = (predict_all(fit_fresh(estimator, data.X, data.y), data.X) for _ in range(2))
    expect_same_outputs(first, second, "Two fits with the same random_state must agree bit for bit")


def check_global_seeds_have_no_influence(estimator: Any, data: ContractData) -> None:
    """With a random_state given, other code that draws from the global generators must not change the result."""
    need_parameter(estimator, "random_state")
    results = []
    for seed in (1, 2):
        with _restored_generators():
            _seed_generators(seed)
            results.append(predict_all(fit_fresh(estimator, data.X, data.y), data.X))
    expect_same_outputs(results[0], results[1], "Global generators must have no influence where random_state is given")


def check_global_generators_untouched(estimator: Any, data: ContractData) -> None:
    """Draws of the user's own code must not depend on whether an estimator was fitted before them."""
    settings: list[dict[str, Any]] = [{}]
    if "random_state" in estimator.get_params(deep=False):
        settings.append({"random_state": None})
    for setting in settings:
        with _restored_generators():
            _seed_generators(20_000)
            before = _generator_states()
            fresh = make_fresh(estimator, **setting)
            fresh.fit(data.X, data.y)
            predict_all(fresh, data.X)
            _expect_same_state(before, _generator_states(), f"fit and predict, {setting or 'seeded'}, must leave")


def check_warning_filters_untouched(estimator: Any, data: ContractData) -> None:
    """Which warnings are shown is for the user to say, so that fit and predict must leave the filters alone."""
    with warnings.catch_warnings():
        fit_fresh(estimator, data.X, data.y)  # libraries that it imports set filters for warnings of their own
        warnings.filterwarnings("ignore", message="A filter that no estimator sets")
        _expect_untouched(estimator, data, lambda: {"warnings.filters": list(warnings.filters)})


def check_thread_counts_untouched(estimator: Any, data: ContractData) -> None:
    """Workers of a search share the cores by their thread counts, which fit and predict must leave alone."""
    n_threads = torch.get_num_threads()
    for other in (n_threads + 1, n_threads):
        try:
            torch.set_num_threads(other)
            _expect_untouched(estimator, data, lambda: {"torch.get_num_threads()": torch.get_num_threads()})
        finally:
            torch.set_num_threads(n_threads)


def _expect_untouched(estimator: Any, data: ContractData, read: Callable[[], dict[str, Any]]) -> None:
    before = read()
    predict_all(fit_fresh(estimator, data.X, data.y), data.X)
    _expect_same_state(before, read(), "fit and predict must leave")


def _expect_same_state(before: dict[str, Any], after: dict[str, Any], promise: str) -> None:
    changed = [name for name in before if before[name] != after[name]]
    expect(not changed, f"{promise} {', '.join(changed)} as found.")


def _generator_states() -> dict[str, Any]:
    return {
        "the generator of random": random.getstate(),
        "the generator of numpy.random": [np.asarray(part).tolist() for part in np.random.get_state()],
        "the generator of torch": torch.default_generator.get_state().tolist(),
    }


def _seed_generators(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


@contextmanager
def _restored_generators() -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])

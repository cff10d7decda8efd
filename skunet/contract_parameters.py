"""Checks of an image estimator's parameters: what searches and clones rely on."""

from functools import partial
from inspect import Parameter, signature
from typing import Any

from sklearn.base import clone

from skunet.contract import (
    ContractData,
    expect,
    expect_error,
    expect_same_outputs,
    expect_same_parameters,
    fit_fresh,
    make_fresh,
    need_parameter,
    predict_all,
)

# Values that no parameter of these names can mean.
IMPOSSIBLE = {"depth": -1, "filters": 0, "max_epochs": -1, "batch_size": 0, "random_state": "seed"}


def check_clone(estimator: Any, data: ContractData) -> None:
    """Searches and cross-validation train clones, which must have all parameters and nothing that was learned."""
    fitted = fit_fresh(estimator, data.X, data.y)
    copy = clone(fitted)
    expect_same_parameters(fitted.get_params(deep=False), copy.get_params(deep=False), "clone must keep parameters")
    learned = sorted(set(vars(copy)) - set(vars(make_fresh(estimator))))
    expect(not learned, f"A clone must be unfitted; it has {learned}.")


def check_set_params(estimator: Any, data: ContractData) -> None:  # noqa: ARG001
    """A search sets parameters by name: each must take the value, give it back, and leave the others alone."""
    names = list(make_fresh(estimator).get_params(deep=False))
    for name in names:
        copy, value = make_fresh(estimator), object()
        before = copy.get_params(deep=False)
        expect(copy.set_params(**{name: value}) is copy, "set_params must return the estimator itself.")
        after = copy.get_params(deep=False)
        expect(after.get(name) is value, f"get_params must give back the {name} that was set.")
        others = [other for other in names if other != name and after.get(other) is not before[other]]
        expect(not others, f"set_params({name}=...) must leave other parameters alone; {others} changed.")


def check_unknown_parameter_raises(estimator: Any, data: ContractData) -> None:  # noqa: ARG001
    """A misspelt name in a search must be an error, as it would otherwise compare equal estimators."""
    expect_error(lambda: make_fresh(estimator).set_params(no_such_parameter=1), "set_params with an unknown name")


def check_constructor_only_stores(estimator: Any, data: ContractData) -> None:  # noqa: ARG001
    """Cloning passes parameters through the constructor, which must store each one itself and check none."""
    given = make_fresh(estimator).get_params(deep=False)
    # A class without a constructor of its own has object's, of *args and **kwargs.
    unnamed = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    accepted = signature(type(estimator).__init__).parameters.values()
    names = [parameter.name for parameter in accepted if parameter.kind not in unnamed][1:]
    for name in names:
        value = object()
        try:
            stored = type(estimator)(**(given | {name: value})).get_params(deep=False)
        except Exception as error:
            raise AssertionError(
                f"The constructor must store {name} and leave checks to fit; got {error!r}."
            ) from error
        expect(stored.get(name) is value, f"The constructor must store {name} as it is.")


def check_parameters_survive_fit(estimator: Any, data: ContractData) -> None:
    """What a search reports is what the user set, so that fit must neither replace nor alter a parameter."""
    fresh = make_fresh(estimator)
    before, untouched = fresh.get_params(deep=False), clone(fresh).get_params(deep=False)
    fresh.fit(data.X, data.y)
    after = fresh.get_params(deep=False)
    expect_same_parameters(untouched, after, "fit must leave parameters as they were")
    replaced = [name for name in before if after[name] is not before[name]]
    expect(not replaced, f"fit must not replace parameters; it replaced {replaced}.")


def check_impossible_parameters_raise(estimator: Any, data: ContractData) -> None:
    """What the constructor does not check, fit must, lest a search scores settings that mean nothing."""
    names = [name for name in IMPOSSIBLE if name in estimator.get_params(deep=False)]
    if not names:
        need_parameter(estimator, " or ".join(IMPOSSIBLE))
    for name in names:
        broken = make_fresh(estimator, **{name: IMPOSSIBLE[name]})
        expect_error(partial(broken.fit, data.X, data.y), f"fit with {name}={IMPOSSIBLE[name]!r}")


def check_set_params_waits_for_fit(estimator: Any, data: ContractData) -> None:
    """A fitted estimator stays what was fitted: parameters of training must not change its predictions."""
    need_parameter(estimator, "depth")
    fitted = fit_fresh(estimator, data.X, data.y)
    before = predict_all(fitted, data.X)
    fitted.set_params(depth=fitted.get_params()["depth"] + 1)
    expect_same_outputs(before, predict_all(fitted, data.X), "set_params(depth=...) must wait for the next fit")

"""What skorch's users do with their nets, beyond what its tests show."""

import numpy as np
import pytest
import torch
from conftest import make_segmenter
from skorch.exceptions import NotInitializedError
from torch import nn

from skunet import UNetSegmenter
from skunet.network import UNet


def weights(segmenter):
    return [parameter.detach().numpy().copy() for parameter in segmenter.module_.parameters()]


def assert_same_weights(first, second):
    for one, other in zip(weights(first), weights(second), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_nll_loss_trains_as_cross_entropy_does(cells):
    X, y = cells
    by_nll, by_cross_entropy = (
        make_segmenter(criterion=criterion, class_weight="balanced", max_epochs=2).fit(X, y)
        for criterion in (nn.NLLLoss, nn.CrossEntropyLoss)
    )
    assert_same_weights(by_nll, by_cross_entropy)


def test_fit_with_warm_start_goes_on_from_loaded_weights(cells, fitted, tmp_path):
    X, y = cells
    fitted.save_params(f_params=tmp_path / "weights.pt")
    segmenter = make_segmenter(warm_start=True, random_state=1, max_epochs=0).initialize()
    segmenter.load_params(f_params=tmp_path / "weights.pt")
    assert_same_weights(segmenter.fit(X, y), fitted)


def test_fit_without_warm_start_begins_anew_after_loading(cells, fitted, tmp_path):
    X, y = cells
    fitted.save_params(f_params=tmp_path / "weights.pt")
    segmenter = make_segmenter(max_epochs=0).initialize()
    segmenter.load_params(f_params=tmp_path / "weights.pt")
    assert_same_weights(segmenter.fit(X, y), make_segmenter(max_epochs=0).fit(X, y))


@pytest.mark.parametrize("name", ["f_params", "f_module"])
def test_loaded_weights_make_a_rebuilt_network_ready_under_both_names(cells, tmp_path, name):
    X, y = cells
    segmenter = make_segmenter().fit(X, y)
    before = segmenter.predict(X)
    segmenter.save_params(**{name: tmp_path / "weights.pt"})
    segmenter.set_params(module__dropout=0.0)
    segmenter.load_params(**{name: tmp_path / "weights.pt"})
    np.testing.assert_array_equal(segmenter.predict(X), before)


def test_predict_takes_the_most_probable_label_after_a_nonlinearity_of_the_users(cells, fitted):
    X, y = cells
    segmenter = make_segmenter(max_epochs=3, predict_nonlinearity=lambda logits: -logits.numpy()).fit(X, y)
    predicted = segmenter.predict(X)
    np.testing.assert_array_equal(predicted, segmenter.predict_proba(X).argmax(axis=1))
    np.testing.assert_array_equal(predicted, 1 - fitted.predict(X))


def test_saving_safetensors_before_fit_says_what_is_missing(tmp_path):
    with pytest.raises(NotInitializedError, match="un-initialized"):
        make_segmenter().save_params(f_params=tmp_path / "weights.safetensors", use_safetensors=True)


class OwnModule(UNetSegmenter):
    """A segmenter whose network is made by its own step."""

    def initialize_module(self):
        torch.manual_seed(0)
        self.module_ = UNet(self.n_channels_in_, len(self.classes_), depth=1, filters=2)
        return self


def test_subclass_that_makes_its_own_network_fits_and_predicts(cells):
    X, y = cells
    with torch.random.fork_rng():
        segmenter = OwnModule(depth=1, max_epochs=1, verbose=0, random_state=0, device="cpu").fit(X, y)
    assert segmenter.predict(X).shape == y.shape

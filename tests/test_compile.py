import numpy as np
import pytest
import torch
from conftest import make_segmenter

from skunet import UNetSegmenter


@pytest.fixture
def graphs():
    """Collect the graphs that are compiled; they run as they are."""
    torch._dynamo.reset()
    compiled = []

    def backend(graph, inputs):
        compiled.append([tuple(value.shape) for value in inputs if isinstance(value, torch.Tensor) and value.ndim == 4])
        return graph.forward

    yield compiled, backend
    torch._dynamo.reset()


@pytest.mark.parametrize(("batch_size", "n_steps"), [(4, 2), (12, 1)])
def test_one_graph_serves_all_batches_and_no_prediction(cells, graphs, batch_size, n_steps):
    X, y = cells
    compiled, backend = graphs
    segmenter = make_segmenter(compile=True, compile__backend=backend, batch_size=batch_size, max_epochs=3).fit(X, y)
    assert len(compiled) == 1
    assert segmenter.history[-1, "train_batch_count"] == n_steps
    segmenter.predict([X[0], X[1][:17], X[2][:, :9]])
    assert len(compiled) == 1


def test_every_network_is_compiled_with_the_parameters_and_no_loss(monkeypatch):
    class TwoNetworks(UNetSegmenter):
        def initialize_module(self):
            super().initialize_module()
            self.second_ = torch.nn.Conv2d(1, 2, 1)
            return self

    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module, **options: compiled.append((module, options)) or module)
    segmenter = TwoNetworks(compile=True, compile__mode="reduce-overhead").initialize()
    options = {"dynamic": False, "mode": "reduce-overhead"}
    assert compiled == [(segmenter.module_, options), (segmenter.second_, options)]
    segmenter.set_params(compile__mode="default")
    assert len(compiled) == 4
    assert segmenter.set_params(compile=False).module_ is not None
    assert len(compiled) == 4


@pytest.mark.usefixtures("graphs")
def test_compiled_training_is_that_of_the_plain_network(cells, tmp_path):
    X, y = cells
    compiled = make_segmenter(compile=True, compile__backend="eager", max_epochs=2).fit(X, y)
    plain = make_segmenter(iterator_train__drop_last=True, max_epochs=2).fit(X, y)
    np.testing.assert_allclose(compiled.predict_proba(X), plain.predict_proba(X), atol=1e-5)
    compiled.save(tmp_path / "file")
    loaded = UNetSegmenter.load(tmp_path / "file", compile=False)
    np.testing.assert_array_equal(loaded.predict(X), compiled.predict(X))


def test_all_batches_are_taken_where_the_user_says_so(cells, graphs):
    X, y = cells
    segmenter = make_segmenter(compile=True, compile__backend=graphs[1], iterator_train__drop_last=False).fit(X, y)
    assert segmenter.history[-1, "train_batch_count"] == 3


def test_graphs_are_for_one_size_and_saving_needs_none(cells, graphs, tmp_path):
    X, y = cells
    compiled, backend = graphs
    segmenter = make_segmenter(compile=True, compile__backend=backend).fit(X, y)
    assert segmenter.get_params_for("compile") == {"dynamic": False, "backend": backend}
    segmenter.save(tmp_path / "file")
    assert len(compiled) == 1
    make_segmenter(compile=True, compile__backend=backend).fit(X[:, :24, :24], y[:, :24, :24])
    assert len(compiled) == 2


def test_gradient_checkpointing_leaves_compiled_networks_alone(cells):
    X, y = cells
    options = {"compile": True, "compile__backend": "eager", "module__gradient_checkpointing": True}
    assert make_segmenter(**options).fit(X, y).predict(X).shape == y.shape

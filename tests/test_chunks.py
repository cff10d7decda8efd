import dask
import dask.array as da
import numpy as np
import pytest
from conftest import make_segmenter

from skunet.model_selection import FixedThresholdClassifier
from skunet.postprocessing import RemoveSmall, WatershedInstances


@pytest.fixture(scope="module")
def mosaic(cells):
    return np.tile(cells[0], (1, 4, 3))[:2, :101, :83]


@pytest.mark.parametrize("chunks", [(1, 40, 40), (2, 33, 83), (1, 101, 5)])
@pytest.mark.parametrize(
    "parameters",
    [
        {"depth": 2},
        {"scaling": "image"},
        {"scaling": "minmax", "tile_size": 24},
        {"module__padding": "valid"},
        {"tta": True, "depth": 2},
        {"module__normalization": "instance", "tile_size": 24},
        {"postprocess": RemoveSmall(9)},
        {"postprocess": WatershedInstances()},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Tiles are blended")
def test_lazy_predictions_are_those_of_arrays(cells, mosaic, chunks, parameters):
    segmenter = make_segmenter(**parameters).fit(*cells)
    lazy = segmenter.predict(da.from_array(mosaic, chunks=chunks))
    expected = segmenter.predict(mosaic)
    assert isinstance(lazy, da.Array)
    is_one = "postprocess" in parameters or parameters.get("module__normalization") == "instance"
    assert lazy.chunks[1:] == (((101,), (83,)) if is_one else da.from_array(mosaic, chunks=chunks).chunks[1:])
    assert (lazy.shape, lazy.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(lazy.compute(scheduler="sync"), expected)
    probabilities = segmenter.predict_proba(da.from_array(mosaic, chunks=chunks))
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.compute(scheduler="sync"), segmenter.predict_proba(mosaic), atol=1e-5)


def test_no_chunk_is_predicted_of_an_image_that_is_scaled_with_nan(cells, mosaic):
    segmenter = make_segmenter(scaling="image").fit(*cells)
    spoiled = mosaic.astype(np.float32)
    spoiled[1, -1, -1] = np.nan
    lazy = segmenter.predict(da.from_array(spoiled, chunks=(1, 40, 40)))
    np.testing.assert_array_equal(lazy[0].compute(scheduler="sync"), segmenter.predict(spoiled[:1])[0])
    with pytest.raises(ValueError, match=r"NaN or infinity: image 1"):
        lazy[1, :10, :10].compute(scheduler="sync")  # the pixel is far from these


def test_only_what_is_asked_for_is_read(cells):
    read = []

    def make(block_info=None):
        read.append(block_info[None]["chunk-location"])
        return np.zeros((1, 64, 64), np.uint8)

    X = da.map_blocks(make, chunks=((1, 1), (64,) * 4, (64,) * 4), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    lazy = make_segmenter(depth=2, scaling="dataset").fit(*cells).predict(X)
    assert lazy.chunks == ((1, 1), (64,) * 4, (64,) * 4)
    assert not read
    lazy[1, :10, :10].compute(scheduler="sync")
    assert {place[0] for place in read} == {1}
    assert {place[1:] for place in read} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_chunks_in_threads(cells, mosaic):
    segmenter = make_segmenter(depth=2).fit(*cells)
    lazy = segmenter.predict(da.from_array(mosaic, chunks=(1, 30, 30)))
    with dask.config.set(scheduler="threads", num_workers=4):
        np.testing.assert_array_equal(lazy.compute(), segmenter.predict(mosaic))


def test_lists_and_colours(cells, mosaic):
    X, y = cells
    segmenter = make_segmenter().fit(np.stack([X, 255 - X], -1), y)
    images = [np.stack([image, 255 - image], -1)[: 70 + 9 * i] for i, image in enumerate(mosaic)]
    lazy = segmenter.predict([da.from_array(image, chunks=(50, 50, 1)) for image in images])
    for found, expected in zip(lazy, segmenter.predict(images), strict=True):
        assert isinstance(found, da.Array)
        np.testing.assert_array_equal(found, expected)


def test_a_later_fit_changes_nothing(cells, mosaic):
    segmenter = make_segmenter().fit(*cells)
    expected, lazy = segmenter.predict(mosaic), segmenter.predict(da.from_array(mosaic, chunks=(1, 50, 50)))
    segmenter.partial_fit(*cells)
    np.testing.assert_array_equal(lazy, expected)


def test_dask_arrays_are_scored_and_written_into_arrays(cells, fitted):
    X, y = cells
    lazy = da.from_array(X, chunks=(3, 16, 16))
    assert fitted.score(lazy, y) == fitted.score(X, y)
    out = np.empty_like(y)
    assert fitted.predict(lazy, out=out) is out
    np.testing.assert_array_equal(out, fitted.predict(X))
    threshold = FixedThresholdClassifier(fitted, threshold=0.3)
    np.testing.assert_array_equal(np.asarray(threshold.predict(lazy)), threshold.predict(X))


def test_other_shapes_are_refused_at_once(fitted):
    with pytest.raises(ValueError, match="as fitted"):
        fitted.predict(da.zeros((2, 30, 30, 3, 2)))
    with pytest.raises(ValueError, match="All images must have the axes of the first; image 1"):
        fitted.predict([da.zeros((30, 30)), da.zeros((30, 30, 1))])
    unknown = da.zeros((1, 30, 30))[:, da.ones(30, dtype=bool)]
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        fitted.predict(unknown)
    with pytest.raises(ValueError, match="To resume, out must be in a file"):
        fitted.predict(da.zeros((1, 30, 30)), resume=True)


def test_labels_that_the_dtype_cannot_hold_are_refused(cells, fitted):
    import copy

    segmenter = copy.deepcopy(fitted).set_params(postprocess=lambda labels: labels + 1000.5)
    with pytest.raises(ValueError, match="postprocess must give labels of dtype uint8 for dask arrays; got float64"):
        segmenter.predict(da.from_array(cells[0])).compute(scheduler="sync")

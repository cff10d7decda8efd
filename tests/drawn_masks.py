"""Masks of all kinds of labels, drawn by hypothesis."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

LABEL_SETS = [
    np.array([False, True]),
    np.array([0, 255], np.uint8),
    np.array([-128, 0, 127], np.int8),
    np.array([-3, -1, 2, 900]),
    np.array([0, 1000, 60_000], np.uint16),
    np.array([-(2**40), 0, 2**40]),
    np.array([0.0, 1.0, 7.0], np.float32),
    np.array(["cell", "background", "edge of a cell"]),
    np.arange(20),
]


@st.composite
def masks(draw):
    """Truth and prediction over one set of labels, not always all of them."""
    labels = draw(st.sampled_from(LABEL_SETS))
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=4, max_side=6))
    # A generator with a drawn seed fills the masks far faster than element by element.
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    subsets = [labels[: draw(st.integers(1, len(labels)))] for _ in range(2)]
    return tuple(generator.choice(subset, shape) for subset in subsets)

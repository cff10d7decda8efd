"""Time `iou_score` against scikit-learn's `jaccard_score` on 3 million pixels."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from paired import benchmark_arguments, paired_ratio, print_row, write_record
from sklearn.metrics import jaccard_score

from skunet.metrics import iou_score

SHAPE = (12, 500, 500)
LABELS = {"0/255": [0, 255], "0/1": [0, 1], "3 classes": range(3), "11 classes": range(11)}
ERROR_RATE = 0.05


def cases() -> Iterator[tuple[str, NDArray, NDArray]]:
    """Yield name, truth and prediction: noise, and regions as in real masks, of several types and labels."""
    generator = np.random.default_rng(0)
    for dtype in ("uint8", "int64"):
        for name, labels in LABELS.items():
            for texture, side in (("noise", 1), ("regions", 50)):
                cells = generator.choice(labels, (SHAPE[0], SHAPE[1] // side, SHAPE[2] // side))
                true = cells.repeat(side, axis=1).repeat(side, axis=2).astype(dtype)
                is_wrong = generator.random(SHAPE) < ERROR_RATE
                pred = np.where(is_wrong, generator.choice(labels, SHAPE), true).astype(dtype)
                yield f"{dtype}, {name}, {texture}", true, pred


def main() -> None:
    arguments = benchmark_arguments(__doc__)
    print(f"{'':<34} {'sklearn':>13} {'skunet':>13} {'ratio':>10}")
    results = {}
    for name, true, pred in cases():
        flat_true, flat_pred = true.ravel(), pred.ravel()
        results[name] = paired_ratio(
            lambda t=flat_true, p=flat_pred: jaccard_score(t, p, average="macro"),
            lambda t=true, p=pred: iou_score(t, p, average="macro"),
            repeats=arguments.repeats,
        )
        print_row(name, results[name])
    write_record(arguments.out, results)


if __name__ == "__main__":
    main()

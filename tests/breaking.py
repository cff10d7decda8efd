"""Ways to break `PixelClassifier`, each registered for the checks that must catch it."""

from pixel_classifier import PixelClassifier

# Names of checks, each with an unfitted estimator.
BROKEN = {}


def breaks(*names):
    """Register a class for the checks that must catch it."""

    def register(cls):
        for name in names:
            assert name not in BROKEN, f"{name} has its broken estimator already"
            BROKEN[name] = cls()
        return cls

    return register


def replace(*names, **steps):
    """Register a `PixelClassifier` whose methods `steps` are replaced."""
    breaks(*names)(type("Broken", (PixelClassifier,), steps))


def after_fit(*names, do):
    """Register a `PixelClassifier` that does something more at the end of fit: `do(self, X, y)`."""

    def fit(self, X, y=None):
        PixelClassifier.fit(self, X, y)
        do(self, X, y)
        return self

    replace(*names, fit=fit)


def mend(*names, by):
    """Register a `PixelClassifier` that silently turns bad input into what it can take: `by(X, y) -> X, y`."""

    def fit(self, X, y=None):
        return PixelClassifier.fit(self, *by(X, y))

    def predict(self, X):
        return PixelClassifier.predict(self, by(X, None)[0])

    replace(*names, fit=fit, predict=predict)

"""skorch's own tests, as installed with it, run against `UNetSegmenter`.

`substitutes` holds the class, the network, the images and the metrics that take the place of skorch's; `originals`
imports skorch's tests with them in place; `conftest` gives the fixtures; `recorded` lists what cannot hold, and why.
"""

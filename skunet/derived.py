"""What is made from a network, and kept as long as its weights stay as they are."""

import copy
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

__all__ = ["kept_for", "with_blocks"]

Network = TypeVar("Network", bound=nn.Module)

# Of each network that is alive: the state of its weights, and what was made from them.
_kept: WeakKeyDictionary[nn.Module, tuple[Any, dict[Hashable, Any]]] = WeakKeyDictionary()
# Things of one network, e.g. compiled for that many sizes of images; the oldest go first.
MOST = 16


def kept_for(module: nn.Module, key: Hashable, make: Callable[[], Any]) -> Any:
    """Return what `make` returned for a network when it was asked last, or now if the weights have changed since.

    Parameters
    ----------
    module : torch.nn.Module
        What is made must hold no reference to it: with it, all that was made of it goes.
    key : hashable
        The name of what is made.
    make : callable
        Called without arguments.

    Examples
    --------
    >>> layer = nn.Linear(1, 1)
    >>> kept_for(layer, "square", lambda: layer.weight.item() ** 2) == layer.weight.item() ** 2
    True
    >>> kept_for(layer, "square", lambda: "made again") == "made again"
    False
    >>> _ = nn.init.ones_(layer.weight)
    >>> kept_for(layer, "square", lambda: "made again")
    'made again'
    """
    # Changes in place count up; new tensors, as on another device, lie elsewhere.
    state = [(tensor.data_ptr(), tensor._version) for tensor in (*module.parameters(), *module.buffers())]
    known, things = _kept.get(module, (None, {}))
    if state != known:
        things = {}
        _kept[module] = (state, things)
    if key not in things:
        things[key] = make()
        if len(things) > MOST:
            del things[next(iter(things))]
    return things[key]


def with_blocks(module: Network, name: str, blocks: Iterable[nn.Module]) -> Network:
    """Return a network that has other blocks in one of its lists, for prediction, and shares all else."""
    network = copy.copy(module)
    network._modules = module._modules | {name: nn.ModuleList(blocks).eval()}
    return network

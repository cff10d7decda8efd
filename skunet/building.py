"""From parameters to network, criterion and optimizer, by skorch's named steps."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import skorch.callbacks
import torch
from skorch.exceptions import NotInitializedError
from torch import nn

from skunet.batching import ImageBatching
from skunet.callbacks import Checkpoint, WeightAveraging, default_callbacks
from skunet.components import accepted, class_weights, criterion_arguments
from skunet.hardware import resolve_device
from skunet.inference import channels_last
from skunet.labels import warn_of_rare_classes
from skunet.pretrained import open_pretrained, take_over
from skunet.randomness import CRITERION, WEIGHTS, draw_seed, seeded_torch
from skunet.scaling import choose_scaling
from skunet.training_set import TrainingSet

__all__ = ["NetworkBuilding"]


# Parameters of objects that are parameters themselves, not of components that skorch builds.
OF_OBJECTS = ("postprocess__", "augment__")


class NetworkBuilding(ImageBatching):
    """The steps of skorch's `initialize`: parameters become components, once the data are known."""

    # ---- parameters

    def _get_param_names(self) -> list[str]:
        # Whatever does not end in "_" is taken for a parameter, skorch's own bookkeeping included.
        return [name for name in super()._get_param_names() if not name.startswith("_")]

    def set_params(self, **parameters: Any) -> Self:
        """Set parameters, those of components by `component__parameter`; `fit` checks them.

        Returns
        -------
        self
        """
        # skorch builds callbacks at once, from the old list.
        are_new = any(name == "callbacks" or re.fullmatch("callbacks__(?!.*__).+", name) for name in parameters)
        if "callbacks" in parameters:
            self.callbacks = parameters.pop("callbacks")
        of_objects = {name: parameters.pop(name) for name in list(parameters) if name.startswith(OF_OBJECTS)}
        super().set_params(**parameters)
        for name, value in of_objects.items():
            component, _, parameter = name.partition("__")
            if not hasattr(getattr(self, component), "set_params"):
                raise ValueError(
                    f"{component} must be an object with parameters, to set {name}; got {getattr(self, component)!r}. "
                    f"Pass one first: {component}={'Augment()' if component == 'augment' else 'RemoveSmall()'}."
                )
            getattr(self, component).set_params(**{parameter: value})
        if are_new and self.initialized_:
            self._initialize_callbacks()
        if self.initialized_:
            self._drop_missing_callbacks()
        return self

    def __sklearn_clone__(self) -> Self:
        copy: Self = super().__sklearn_clone__()
        copy.pretrained = self.pretrained  # a clone of the segmenter there would have no weights
        return copy

    def _drop_missing_callbacks(self) -> None:
        callbacks: list[Any] = self.callbacks_
        callbacks[:] = [(name, callback) for name, callback in callbacks if callback is not None]

    def get_params_for(self, prefix: str) -> dict[str, Any]:
        """Return the arguments of a component: the user's, and those that follow from parameters and data."""
        given: dict[str, Any] = super().get_params_for(prefix)
        if prefix == "module" and not isinstance(self.module, nn.Module):
            return accepted(self.module, self._module_arguments()) | given
        if prefix == "criterion":
            return criterion_arguments(self.criterion, self._class_weights()) | given
        if prefix == "compile":
            return {"dynamic": False} | given  # patches are of one size; graphs for any size are slower, and may fail
        return given

    def get_params_for_optimizer(self, prefix: str, named_parameters: Any) -> Any:
        """Return the arguments of the optimizer, which takes its step over all weights at once where it can.

        Not `fused`: those kernels go wrong where a weight and its state differ in layout, and change weights unnoticed.
        """
        named_parameters = list(named_parameters)
        groups, arguments = super().get_params_for_optimizer(prefix, named_parameters)
        is_chosen = {"fused", "foreach", "capturable", "differentiable"} & set(arguments)
        can_step_at_once = all(
            weight.is_floating_point() and weight.device.type in ("cpu", "cuda") for _, weight in named_parameters
        )
        at_once = accepted(self.optimizer, {"foreach": True}) if can_step_at_once and not is_chosen else {}
        return groups, at_once | arguments

    def _module_arguments(self) -> dict[str, Any]:
        classes = getattr(self, "classes_", self.classes)
        return {
            "in_channels": getattr(self, "n_channels_in_", 1),
            "n_classes": 2 if classes is None else len(classes),
            "spatial_ndim": getattr(self, "spatial_ndim_", 2),
            "depth": self.depth,
            "filters": self.filters,
        }

    def _class_weights(self) -> list[float] | None:
        if not hasattr(self, "codec_"):
            return None
        weights: list[float] | None = class_weights(self.class_weight, self.codec_, self.class_counts_)
        return weights

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        callbacks = self.callbacks if isinstance(self.callbacks, list) else []
        given = [item[1] if isinstance(item, tuple) else item for item in callbacks]
        kinds = [item if isinstance(item, type) else type(item) for item in given]
        is_averaging = any(issubclass(kind, WeightAveraging) for kind in kinds)
        return [pair for pair in default_callbacks() if not (is_averaging and isinstance(pair[1], WeightAveraging))]

    def initialize_callbacks(self) -> Any:
        """Build the callbacks; a name in `callbacks__NAME` that none has is an error."""
        try:
            names = [name for name, _ in self._uniquely_named_callbacks()]
        except ValueError as error:
            defaults = ", ".join(name for name, _ in self._default_callbacks)
            error.add_note(f"Default callbacks are {defaults}; pass callbacks__NAME=... to replace one.")
            raise
        asked = {key.split("__")[1] for key in self.get_params(deep=False) if key.startswith("callbacks__")}
        if asked - set(names):
            raise ValueError(f"callbacks__* must name one of {names}; got {sorted(asked - set(names))}.")
        super().initialize_callbacks()
        # Scores are there before they are judged, and files are written once all others have heard of the epoch's end.
        last = (skorch.callbacks.EarlyStopping, Checkpoint, skorch.callbacks.PrintLog)
        self.callbacks_.sort(key=lambda pair: sum((i + 1) * isinstance(pair[1], kind) for i, kind in enumerate(last)))
        return self

    # ---- building and keeping the network

    device: Any

    @contextmanager
    def _resolved_device(self) -> Iterator[None]:
        """Let skorch's own code, which hands `self.device` to torch, see the device that "auto" stands for."""
        device = self.device
        self.device = self.device_ = resolve_device(device)
        try:
            yield
        finally:
            self.device = device

    def _initialize_module(self, reason: str | None = None) -> Any:
        with self._resolved_device():
            super()._initialize_module(reason)
        self.built_with_ = self.get_params_for("module")
        self.size_multiple_ = 2**self.depth
        self.is_trained_ = False
        return self

    def _initialize_criterion(self, reason: str | None = None) -> Any:
        with self._resolved_device():
            return super()._initialize_criterion(reason)

    def initialize(self) -> Self:
        """Build all components; without data for 1 channel and the labels in `classes`, or 2.

        Returns
        -------
        self
        """
        self.seed_ = draw_seed(self.random_state)
        super().initialize()
        return self

    def initialize_module(self) -> Any:
        """Build the network from the seed; an instance that was given is taken as it is."""
        with seeded_torch(self._drawn_seed(), *WEIGHTS):
            super().initialize_module()
        self._set_layout()
        return self

    def _drawn_seed(self) -> int:
        """Return the seed of this fit; skorch's users may build components before it."""
        if not hasattr(self, "seed_"):
            self.seed_ = draw_seed(self.random_state)
        return int(self.seed_)

    def torch_compile(self, module: Any, name: str) -> Any:
        """Return a module compiled where `compile` says so; losses stay as they are, as they take any sizes."""
        return module if name in self._criteria else super().torch_compile(module, name)

    def initialize_criterion(self) -> Any:
        """Build the criterion, with class weights where the classes are known."""
        with seeded_torch(self._drawn_seed(), *CRITERION):
            super().initialize_criterion()
        self.criterion_weights_ = self._class_weights()
        return self

    def _set_layout(self) -> None:
        # Convolutions of channels-last images repack weights of any other layout at each call. LBFGS, though,
        # lays gradients out flat without a copy.
        if self.module_ is not self.module and self.optimizer is not torch.optim.LBFGS:
            self._lay_out(channels_last(getattr(self, "spatial_ndim_", 2)))

    def _lay_out(self, memory_format: torch.memory_format) -> None:
        move: Any = nn.Module.to  # a module's own `to` may know of devices alone
        if isinstance(self.module_, nn.Module):
            move(self.module_, memory_format=memory_format)

    def save_params(self, *args: Any, use_safetensors: bool = False, **kwargs: Any) -> None:
        """Save weights, optimizer or history to files; see `skorch.NeuralNet.save_params`."""
        if not use_safetensors or not self.initialized_:
            super().save_params(*args, use_safetensors=use_safetensors, **kwargs)
            return
        self._lay_out(torch.contiguous_format)  # safetensors takes no others
        super().save_params(*args, use_safetensors=True, **kwargs)
        self._set_layout()

    def load_params(self, *args: Any, **kwargs: Any) -> None:
        """Load weights, optimizer or history from files; see `skorch.NeuralNet.load_params`."""
        with self._resolved_device():
            super().load_params(*args, **kwargs)
        if args or any(kwargs.get(source) for source in ("f_params", "f_module", "checkpoint")):
            self.is_trained_ = True

    def __setstate__(self, state: dict[str, Any]) -> None:
        device = state["device"]
        if device != "auto":
            super().__setstate__(state)
            return
        super().__setstate__(state | {"device": resolve_device(device)})
        self.device = device

    def check_is_fitted(self, attributes: Any = None, *args: Any, **kwargs: Any) -> None:
        """Raise NotFittedError before fit, and after a parameter replaced the trained network."""
        super().check_is_fitted(attributes, *args, **kwargs)
        if attributes is None and not getattr(self, "is_trained_", False):
            raise NotInitializedError(
                f"This {type(self).__name__} instance is not fitted yet: its network has random weights. "
                "Call fit, partial_fit or load_params first."
            )

    def _is_trained(self) -> bool:
        return getattr(self, "is_trained_", False) and hasattr(self, "classes_")

    def _has_finite_weights(self) -> bool:
        return all(bool(torch.isfinite(weight).all()) for weight in self.module_.parameters())

    def _is_built_without_data(self) -> bool:
        return self.initialized_ and not hasattr(self, "classes_")

    def _learn(self, data: TrainingSet, *, is_fresh: bool) -> None:
        """Take from the data what the network must know before it is built."""
        warn_of_rare_classes(data.codec, data.class_counts, stacklevel=4)
        if is_fresh or not hasattr(self, "codec_"):
            self.codec_ = data.codec
            self.classes_ = data.codec.classes
        if is_fresh or not hasattr(self, "flip_axes_"):
            self.flip_axes_ = data.flip_axes
            if len(data.flip_axes) < data.images.spatial_ndim and self.augment == "default":
                self._note(f"The masks have a direction: images are mirrored along axes {data.flip_axes} alone.")
        self.class_counts_ = data.class_counts
        self.data_description_ = data.describe()
        self.n_channels_in_ = data.n_channels
        self.spatial_ndim_ = data.images.spatial_ndim

    def _build(self, *, is_fresh: bool) -> None:
        """Build network, criterion and optimizer, unless those there are shall go on."""
        if is_fresh:
            self.initialized_ = False
            if hasattr(self, "scaling_constants_"):
                del self.scaling_constants_
        if not self.initialized_:
            self.initialize()
        elif self.built_with_ != self.get_params_for("module"):
            self._initialize_module(
                "Building the network anew, since its parameters changed: training starts from random weights."
            )
            self._initialize_criterion("Building the criterion anew.")
            self._initialize_optimizer("Building the optimizer anew.")
        elif self._class_weights() != self.criterion_weights_:
            self._initialize_criterion("Building the criterion anew, since the weights of the classes changed.")
        if not hasattr(self, "scaling_constants_"):
            self.fitted_scaling_ = choose_scaling(self.scaling, self.n_channels_in_)
        self._place_network()
        if self.pretrained is not None and not self.is_trained_:
            pretrained, built_with = open_pretrained(self.pretrained), self.get_params_for("module")
            self._note(take_over(self.module_, pretrained, classes=self.classes_.tolist(), built_with=built_with))
        self.is_stopping_ = False
        self.scaler_ = torch.amp.GradScaler(self.device_.split(":")[0], enabled=self.precision_ == "float16")
        self.is_trained_ = True

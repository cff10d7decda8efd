"""The estimator: the story of fit, predict and score."""

from typing import Any, Self

import torch
from sklearn.base import ClassifierMixin
from torch.utils.data import DataLoader

from skunet.hyperparameters import check_keywords
from skunet.image_by_image import score_masks
from skunet.image_dataset import ImageDataset
from skunet.losses import CrossEntropyDiceLoss
from skunet.net import SegmentationNet
from skunet.network import UNet

__all__ = ["UNetSegmenter"]


class UNetSegmenter(ClassifierMixin, SegmentationNet):  # type: ignore[misc]  # sklearn is not typed
    """U-Net for the segmentation of images and volumes, as a scikit-learn classifier of pixels.

    Parameters
    ----------
    depth : int, default=4
        How often the resolution is halved, 0 to 6.
    filters : int, default=16
        Channels at full resolution, at least 1; doubled per level.
    classes : list of labels or None, default=None
        Labels to expect, whether `y` has them or not; None takes those of `y`. A label that is not listed raises.
    scaling : {"auto", "dataset", "image", "minmax"}, (mean, std) or None, default="auto"
        By mean and standard deviation of the training images, or of each image; to 0..1 by the extremes of each image;
        by given numbers (per channel, or one for all); or not. "auto" is "image" for one channel, "dataset" for more.
    patch_size : int, tuple of int or None, default=None
        Pixels per side of the random patches to train on, rounded up to a multiple of `2**depth`. None is about the
        median of the images, and at most 256 pixels per side (128 in 3-D).
    batches_per_epoch : int, "auto" or None, default="auto"
        Training steps of an epoch. None takes about as many pixels as the images have; so does "auto", in at least 8.
    balanced_share : float, default=0.0
        Share of the patches, in 0..1, that hold a pixel of a class drawn with equal chances, so that rare ones occur.
    augment : "default", None, float or callable, default="default"
        A number is the strength of all parts of `augmentation.Augment`, which tells what a callable gets; 0 mirrors and
        turns along `flip_axes_`. "default" is 0.5 for up to 16 images (2-D), else 0; in colour also brightness.
    class_weight : None, "balanced" or dict, default=None
        Weight of each class in the loss; a dict is by label.
    ignore_label : label or None, default=None
        A label of `y` that counts nowhere: not in the loss, not in the scores, never predicted.
    precision : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        Of the network, not of the loss. "auto" takes bfloat16 where the processor or GPU has instructions for it,
        float16 on the GPUs just before these, else float32, never TensorFloat-32.
    tile_size : "auto", None, int or tuple of int, default="auto"
        Kept pixels per side of the tiles in which large images are predicted, rounded up to a multiple of `2**depth`.
        None takes each image whole; "auto" is as large as is fast and fits half the free memory, or `memory_limit`.
    tta : bool or list of str, default=False
        Average over all flips and turns along `flip_axes_`, or the image and those named: flip_depth, flip_vertical,
        flip_horizontal, turn_90, turn_180, turn_270, transpose, antitranspose.
    postprocess : None, callable, transformer, or list of these, default=None
        Done to what `predict` would return, one whole image at a time: functions from labels (*S) to labels, or steps
        of `skunet.postprocessing`. One with an attribute `takes_probabilities=True` gets probabilities (K, *S) and
        `classes_`, and must be the first.
    engine : {"torch", "openvino", "onnxruntime"}, default="torch"
        What computes predictions. Others compute on the CPU, need the extra of their name, and take a moment to compile
        the network; ONNX Runtime is always float32.
    memory_limit : float or None, default=None
        Bytes that a training step may take, beside data and libraries, by an estimate: patches are cropped (where
        `patch_size` is None) and batches made smaller. So are tiles.
    norm_adaptation : "auto" or float, default="auto"
        Share, in 0..1, of the image's own statistics, measured in parts of it, in the batch norms that predict it.
        "auto" is 0.5 where patches went through the network one by one, as of most volumes, else 0.
    pretrained : None, path, fitted segmenter or state dict, default=None
        Weights to start a new fit from, see `skunet.pretrained`: of layers that agree; a first convolution is adapted
        to other channels, a head to other labels, and the rest is new. Of these `save` keeps a path alone.
    random_state : int, RandomState or None, default=None
        Decides weights, validation images, patches, augmentation and dropout.
    module : type or Module, default=UNet
        Called with `in_channels`, `n_classes` and whatever of `depth`, `filters` and `spatial_ndim` it names; maps
        (N, C, *S) to logits (N, K, *S). An instance is used as it is. It may have `size_multiple` (2**depth),
        `receptive_field` (measured), `is_exactly_tileable` and `deep_supervision` (False), see `UNet`.
    criterion : type, default=CrossEntropyDiceLoss
        Called with logits (N, K, *S), `NLLLoss` with their log-softmax, and class indices (N, *S), -1 = ignore.
    optimizer : type, default=torch.optim.AdamW
    lr : float, default=1e-3
    max_epochs : int, default=100
    batch_size : int or "auto", default="auto"
        Patches per training step; -1 for all. "auto" is 4, or 1 of more than 2**18 pixels, as most volumes have.
    micro_batch_size : int or None, default=None
        Patches that go through the network, and are normalized, at once; gradients are those of the batch. None is all,
        or fewer where the memory was not enough, with a warning.
    iterator_train, iterator_valid : type, default=torch.utils.data.DataLoader
    dataset : type, default=ImageDataset
        Another class is called with `(X, y)`, not by `predict`, and must give (image, mask) pairs, channels first.
    train_split : float, None or callable, default=0.2
        Share of the images (of the groups, where there are any) to validate on, at least one; None for no validation.
        Under 5 images or 2 groups none is held out. A callable is used as by skorch.
    callbacks : None, "disable" or list, default=None
        Added to the default ones: `epoch_timer`, `train_loss`, `valid_loss`, `iou`, `averaging`, `early_stopping`,
        `progress`, `print_log`. `callbacks__early_stopping=None` switches one off.
    predict_nonlinearity : "auto" (softmax over classes), None or callable, default="auto"
    warm_start : bool (whether `fit` goes on from the weights it has), default=False
    verbose : int, default=1
    device : str ("auto" takes CUDA, then MPS, then the CPU), default="auto"
    compile : bool, default=False
        Whether to train with `torch.compile` (CUDA graphs: `compile__mode="reduce-overhead"`), in one graph, as a last,
        smaller batch is left out. Prediction and files use the plain network.
    use_caching, torch_load_kwargs : as in `skorch.NeuralNet`
    **kwargs
        Parameters of components, e.g. `module__normalization="instance"` (see `UNet` for all),
        `optimizer__weight_decay=1e-2`, `iterator_train__num_workers=2`, `callbacks__early_stopping__patience=5`.

    Attributes
    ----------
    classes_ : ndarray of shape (K,)
        Sorted labels, without `ignore_label`, in the dtype of `y`.
    class_counts_ : ndarray of shape (K,)
        Pixels of each class in `y`, those without weight not counted.
    n_channels_in_, spatial_ndim_, n_iter_ : int (n_iter_: epochs trained)
    history_ : skorch.history.History
        A record per epoch: `train_loss`, `valid_loss`, `valid_iou`, `dur` in seconds; also as `history`.
    module_ : torch.nn.Module
    seed_, device_, precision_ : int, str and str
        What `random_state` and "auto" stood for.
    batch_size_, patch_size_ : int and tuple of int
    flip_axes_ : tuple of int
        Axes, of -1, -2 and -3, along which the first masks have no direction, as that from sky to road.

    Examples
    --------
    >>> from skunet import UNetSegmenter
    >>> from skunet.datasets import make_cells
    >>> X, y = make_cells(6, size=32, random_state=0)
    >>> segmenter = UNetSegmenter(depth=1, filters=4, max_epochs=1, verbose=0, random_state=0).fit(X, y)
    >>> segmenter.predict(X).shape
    (6, 32, 32)
    """

    def __init__(
        self,
        # Figures: mIoU of CamVid (parts of its training images, 180 x 240), 3 minutes, 2 cores; 32 filters if not said.
        depth: int = 4,  # .418; 5 .392 (16 filters)
        filters: int = 16,  # .418; 32 .370, and pixel error of ISBI .081 instead of .076
        *,
        classes: Any = None,
        scaling: Any = "auto",  # figures: `choose_scaling`
        patch_size: Any = None,
        batches_per_epoch: Any = "auto",
        balanced_share: float = 0.0,
        augment: Any = "default",  # figures: `choose_augment`; .348, .274 where sky and road change places (batch 2)
        class_weight: Any = None,
        ignore_label: Any = None,
        precision: str = "auto",
        tile_size: Any = "auto",
        tta: Any = False,
        postprocess: Any = None,
        engine: str = "torch",
        memory_limit: float | None = None,
        norm_adaptation: Any = "auto",  # figures: `choose_share`
        pretrained: Any = None,
        random_state: Any = None,
        module: Any = UNet,
        criterion: Any = CrossEntropyDiceLoss,  # .370; cross entropy alone .360
        optimizer: Any = torch.optim.AdamW,
        lr: float = 1e-3,  # .370; 2e-3 .349
        max_epochs: int = 100,
        batch_size: Any = "auto",  # .369 (4); 2 .348, and pixel error of ISBI .095 instead of .088
        micro_batch_size: int | None = None,
        iterator_train: Any = DataLoader,
        iterator_valid: Any = DataLoader,
        dataset: Any = ImageDataset,
        train_split: Any = 0.2,
        callbacks: Any = None,
        predict_nonlinearity: Any = "auto",
        warm_start: bool = False,
        verbose: int = 1,
        device: str = "auto",
        compile: bool = False,
        use_caching: Any = "auto",
        torch_load_kwargs: Any = None,
        **kwargs: Any,
    ) -> None:
        check_keywords(type(self), kwargs)
        self.depth = depth
        self.filters = filters
        self.classes = classes
        self.scaling = scaling
        self.patch_size = patch_size
        self.batches_per_epoch = batches_per_epoch
        self.balanced_share = balanced_share
        self.augment = augment
        self.class_weight = class_weight
        self.ignore_label = ignore_label
        self.precision = precision
        self.tile_size = tile_size
        self.tta = tta
        self.postprocess = postprocess
        self.engine = engine
        self.memory_limit = memory_limit
        self.norm_adaptation = norm_adaptation
        self.micro_batch_size = micro_batch_size
        self.pretrained = pretrained
        self.random_state = random_state
        super().__init__(
            module=module,
            criterion=criterion,
            optimizer=optimizer,
            lr=lr,
            max_epochs=max_epochs,
            batch_size=batch_size,
            iterator_train=iterator_train,
            iterator_valid=iterator_valid,
            dataset=dataset,
            train_split=train_split,
            callbacks=callbacks,
            predict_nonlinearity=predict_nonlinearity,
            warm_start=warm_start,
            verbose=verbose,
            device=device,
            compile=compile,
            use_caching=use_caching,
            torch_load_kwargs=torch_load_kwargs,
            **kwargs,
        )

    def fit(self, X: Any, y: Any = None, *, groups: Any = None, sample_weight: Any = None, **fit_params: Any) -> Self:
        """Train the network on images and their masks.

        Parameters
        ----------
        X : array, list, or Dataset
            Images: a stack (N, *S) or (N, *S, C), any real dtype, channels last, where S is (H, W) or (D, H, W);
            a list or 1-D object array of images of several sizes; a list of paths; a lazy array; a Tensor, channels
            first; the path of a TIFF file or zarr array that holds a stack; or a torch Dataset of (image, mask) pairs,
            channels first, with `y=None`.
        y : array or list
            Masks: a stack (N, *S), or a list of (*S) arrays or of paths. Any labels: bool, 0/255, gaps, negative,
            whole-number floats, strings.
        groups : array-like of shape (N,), optional
            Images of one group (patient, car, film) stay on one side of the validation split.
        sample_weight : array-like of shape (N,) or (N, *S), optional
            Weights of images or pixels in the loss, at least 0. Images without any weight are left out.
        **fit_params : given to the module's forward, as in skorch

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            If a parameter, an image or a mask is not as described; before any training.

        Warns
        -----
        UserWarning
            If a class covers less than 0.1 % of the pixels; if Ctrl-C ended training, which keeps what was learned.
        """
        self._check_may_train()
        is_fresh = not (self.warm_start and self._is_trained())
        data = self._open_training_set(X, y, self.classes, groups, sample_weight, is_fresh=is_fresh)
        is_new = is_fresh and not (self.warm_start and self._is_built_without_data())
        return self._train(data, is_fresh=is_new, method="fit", **fit_params)

    def partial_fit(
        self,
        X: Any,
        y: Any = None,
        classes: Any = None,
        *,
        groups: Any = None,
        sample_weight: Any = None,
        **fit_params: Any,
    ) -> Self:
        """Train `max_epochs` more, from the weights there are.

        Parameters
        ----------
        X, y, groups, sample_weight, **fit_params
            As in `fit`. Channels, rank and labels must be those of the first fit.
        classes : list of all labels that will ever occur, optional; for the first call

        Returns
        -------
        self
        """
        self._check_may_train()
        is_fresh = not hasattr(self, "classes_")
        labels = self.classes if classes is None else classes
        data = self._open_training_set(X, y, labels, groups, sample_weight, is_fresh=is_fresh)
        return self._train(data, is_fresh=is_fresh and not self.initialized_, method="partial_fit", **fit_params)

    def predict(self, X: Any, *, out: Any = None, resume: bool = False) -> Any:
        """Return the most probable label of each pixel.

        Parameters
        ----------
        X : as in `fit`
            Of any sizes, with channels and rank as fitted. Lazy arrays are read tile by tile.
        out : array or list of arrays, optional
            To write into, tile by tile, memory maps, zarr and HDF5 too: a stack (N, *S) where X is one, else a list of
            (*S), of a dtype that holds the labels.
        resume : bool, default=False
            Go on with what an earlier, interrupted call left out. `out` must be in a file (memory map, zarr, HDF5); a
            file `*.progress` beside it notes what is written until all is.

        Returns
        -------
        labels : ndarray (N, *S), list or object array of (*S)
            In the container of X and the dtype of `classes_`, or of what `postprocess` gives; `out` where it is given.
            Of dask arrays dask arrays, which are computed chunk by chunk when they are asked for.

        Raises
        ------
        NotFittedError, ValueError
            Before fit; if rank or channels are not as fitted, a pixel is NaN or infinite, or `out` has another shape;
            to resume, if `out` is in no file or was begun by another prediction.
        """
        self._check_ready()
        return self._predict_labels(X, out, resume)

    def predict_proba(self, X: Any, *, out: Any = None, resume: bool = False) -> Any:
        """Return the probability of each class at each pixel.

        Parameters
        ----------
        X, resume : as in `predict`
        out : as in `predict`
            (N, K, *S), or a list of (K, *S), of floats.

        Returns
        -------
        probabilities : ndarray (N, K, *S), list or object array of (K, *S), float32
            In the order of `classes_`; they sum to 1 over axis 1 (0 in a list).
        """
        self._check_ready()
        return self._predict_probabilities(X, out, resume)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the mean IoU over the classes, from one confusion matrix over all pixels.

        A class absent from both truth and prediction is left out; pixels of `ignore_label` count nowhere.

        Parameters
        ----------
        X, y : as in `fit`
        sample_weight : array-like of shape (N,) or (N, *S), optional

        Returns
        -------
        float in 0..1
        """
        self._check_gives_labels()
        return score_masks(self, X, y, sample_weight)

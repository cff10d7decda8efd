import numpy as np
import pytest
import torch
from conftest import make_segmenter
from scipy import ndimage
from sklearn.model_selection import GridSearchCV

from skunet import UNetSegmenter
from skunet.augmentation import Augment, augment_batch, choose_augment

flip_and_turn = Augment()


@pytest.mark.parametrize("size", [(6, 6), (5, 7), (3, 4, 4), (2, 3, 5)])
def test_image_mask_and_weight_stay_together(size):
    masks = torch.arange(5 * np.prod(size)).reshape(5, *size)
    images = torch.stack([masks, -masks], dim=1).float()
    out, out_masks, out_weights = flip_and_turn(images, masks, masks / 2, np.random.default_rng(1))
    assert torch.equal(out[:, 0], out_masks.float())
    assert torch.equal(out[:, 1], -out_masks.float())
    assert torch.equal(out_weights, out_masks / 2)
    for before, after in zip(masks, out_masks, strict=True):
        assert sorted(before.flatten().tolist()) == sorted(after.flatten().tolist())


def test_all_eight_symmetries_of_a_square_occur_and_each_sample_has_its_own():
    mask = torch.arange(9).reshape(1, 3, 3).repeat(400, 1, 1)
    _, turned, _ = flip_and_turn(mask[:, None].float(), mask, None, np.random.default_rng(0))
    kinds, counts = np.unique(turned.reshape(400, 9), axis=0, return_counts=True)
    assert len(kinds) == 8
    assert counts.min() > 25


def test_the_generator_alone_decides():
    images = torch.rand(4, 1, 6, 6)
    first, second = (flip_and_turn(images, images[:, 0], None, np.random.default_rng(3))[0] for _ in range(2))
    assert torch.equal(first, second)


def test_what_the_user_names_is_applied():
    images, masks = torch.rand(2, 1, 4, 4), torch.zeros(2, 4, 4)
    assert augment_batch(None, images, masks, None, np.random.default_rng(0))[0] is images

    def brighten(images, masks, weights, generator):
        return images + generator.random(), masks, weights

    brighter = augment_batch(brighten, images, masks, None, np.random.default_rng(0))[0]
    assert torch.allclose(brighter - images, torch.tensor(np.random.default_rng(0).random()).float())


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (lambda images, masks: (images, masks), TypeError, r"got \(Tensor, Tensor\) from"),
        (lambda images, masks: None, TypeError, r"got \(NoneType\) from"),
        (lambda images, masks: (images.numpy(), masks, None), TypeError, r"got \(ndarray, Tensor, NoneType\) from"),
        (
            lambda images, masks: (images[..., :2], masks, None),
            ValueError,
            r"images \(B, 1, \*S\), masks .* got \[\(2, 1",
        ),
        (lambda images, masks: (images.repeat(1, 2, 1, 1), masks, None), ValueError, r"got \[\(2, 2, 4, 4\), \(2, 4"),
        (lambda images, masks: (images, masks, masks[:, 1:]), ValueError, r"\(2, 3, 4\)\] from"),
    ],
)
def test_what_a_function_of_the_user_returns_is_checked(returned, error, message):
    def augment(images, masks, weights, generator):
        return returned(images, masks)

    with pytest.raises(error, match=message):
        augment_batch(augment, torch.rand(2, 1, 4, 4), torch.zeros(2, 4, 4), None, np.random.default_rng(0))


def test_a_function_of_the_user_may_compute_in_double_precision():
    images, masks = torch.rand(2, 1, 4, 4), torch.zeros(2, 4, 4)
    doubled = augment_batch(lambda *batch: (batch[0].double(), *batch[1:3]), images, masks, None, None)[0]
    assert doubled.dtype == torch.float32


# ---- Augment

PARTS = {
    "rotation": 20,
    "zoom": 0.3,
    "shear": 10,
    "elastic": 2,
    "brightness": 0.5,
    "contrast": 0.5,
    "gamma": 0.5,
    "noise": 0.2,
    "blur": 1.5,
    "low_resolution": 1,
    "channel_drop": 0.5,
}
SPATIAL = ("rotation", "zoom", "shear", "elastic")


def batch(size=(24, 24), n_samples=6, n_channels=2):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n_samples, n_channels, *size, generator=generator)
    masks = (images[:, 0] > 0).long() * 7 - 3
    return images, masks, masks.float() + 3.5


def alone(name, **parameters):
    return Augment(**({"flip": False, "turn": False, "probability": 1.0, name: PARTS[name]} | parameters))


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("size", [(24, 24), (9, 17), (8, 12, 12)])
def test_each_part_changes_what_it_should(name, size):
    images, masks, weights = batch(size)
    out, out_masks, out_weights = alone(name)(images, masks, weights, np.random.default_rng(0))
    assert (out.shape, out.dtype) == (images.shape, images.dtype)
    assert out.isfinite().all()
    assert not torch.equal(out, images)
    assert out_masks.dtype == masks.dtype
    assert set(out_masks.unique().tolist()) <= set(masks.unique().tolist())
    # Masks and weights move together, and only where the image does.
    assert torch.equal(out_weights, out_masks.float() + 3.5)
    assert torch.equal(out_masks, masks) == (name not in SPATIAL)
    assert (images == batch(size)[0]).all()


@pytest.mark.parametrize("name", PARTS)
def test_samples_differ_and_the_generator_alone_decides(name):
    images, masks, _ = batch(n_samples=1)
    images, masks = images.repeat(8, 1, 1, 1), masks.repeat(8, 1, 1)
    torch.manual_seed(1)
    first = alone(name)(images, masks, None, np.random.default_rng(3))[0]
    torch.manual_seed(2)
    again = alone(name)(images, masks, None, np.random.default_rng(3))[0]
    assert torch.equal(first, again)
    assert len({tuple(sample.flatten().tolist()) for sample in first}) > (1 if name == "channel_drop" else 4)


def test_a_rotation_by_a_right_angle_is_exact(monkeypatch):
    monkeypatch.setattr("skunet.warping.math.radians", lambda degrees: np.pi / 2 if degrees else 0.0)
    images, masks, _ = batch((10, 10))
    out, out_masks, _ = alone("rotation")(images, masks, None, np.random.default_rng(0))
    turned = [torch.rot90(images, k, (-2, -1)) for k in (1, 3)]
    assert any(torch.allclose(out, one, atol=1e-4) for one in turned)
    assert any(torch.equal(out_masks, torch.rot90(masks, k, (-2, -1))) for k in (1, 3))


def test_image_and_mask_are_deformed_alike():
    rows, columns = np.mgrid[:64, :64]
    disc = torch.from_numpy((rows - 30) ** 2 + (columns - 34) ** 2 < 15**2)
    images, masks = disc[None, None].float().repeat(8, 1, 1, 1), disc[None].long().repeat(8, 1, 1)
    augment = Augment(rotation=40, zoom=0.4, shear=15, elastic=4, probability=1.0)
    out, out_masks, _ = augment(images, masks, None, np.random.default_rng(0))
    assert ((out[:, 0] > 0.5) == (out_masks > 0)).float().mean() > 0.995
    areas = out_masks.flatten(1).sum(1) / disc.sum()
    assert areas.min() > 0.3
    assert areas.max() < 3
    assert areas.std() > 0.05


def test_depth_of_other_spacing_is_turned_about_itself_alone():
    volumes = torch.arange(6.0)[None, None, :, None, None].repeat(4, 1, 1, 16, 16)
    masks = volumes[:, 0].long()
    turned, _, _ = alone("rotation", spacing=(3, 1, 1))(volumes, masks, None, np.random.default_rng(0))
    torch.testing.assert_close(turned, volumes)
    about_all, _, _ = alone("rotation")(volumes, masks, None, np.random.default_rng(0))
    assert not torch.allclose(about_all, volumes)


def test_labels_of_any_dtype_stay_exact():
    for dtype, label in [(torch.uint8, 255), (torch.int16, -30000), (torch.int32, 2**31 - 1), (torch.int64, 2**53 - 1)]:
        masks = torch.full((2, 12, 12), label, dtype=dtype)
        out = alone("rotation")(torch.rand(2, 1, 12, 12), masks, None, np.random.default_rng(0))[1]
        assert torch.equal(out, masks)


def changed(name, images):
    return alone(name)(images, images[:, 0], None, np.random.default_rng(0))[0]


@pytest.mark.parametrize("size", [(16, 18), (8, 10, 12)])
def test_brightness_adds_a_number_to_each_channel(size):
    images, _, _ = batch(size, n_samples=40)
    added = (changed("brightness", images) - images).flatten(2)
    assert added.std(2).max() < 1e-5
    assert (added[:, 0] - added[:, 1]).abs().max() > 0.1
    assert -0.5 <= added.min() < -0.4
    assert 0.4 < added.max() <= 0.5


@pytest.mark.parametrize("size", [(16, 18), (8, 10, 12)])
def test_contrast_is_that_to_the_mean_of_each_channel(size):
    images, _, _ = batch(size, n_samples=40)
    before, after = (part.flatten(2) for part in (images + 3, changed("contrast", images + 3)))
    torch.testing.assert_close(after.mean(2), before.mean(2))
    ratio = (after - after.mean(2, keepdim=True)).std(2) / before.std(2)
    torch.testing.assert_close(ratio[:, 0], ratio[:, 1])
    means = before.mean(2, keepdim=True)
    torch.testing.assert_close(means + (after - means) / ratio[..., None], before, atol=1e-4, rtol=1e-4)
    assert 1 / 1.5 <= ratio.min() < 0.75
    assert 1.35 < ratio.max() <= 1.5


@pytest.mark.parametrize("size", [(16, 18), (8, 10, 12)])
def test_gamma_is_a_power_between_least_and_largest(size):
    images, _, _ = batch(size, n_samples=40)
    before, after = images.flatten(1), changed("gamma", images).flatten(1)
    torch.testing.assert_close(after.amin(1), before.amin(1))
    torch.testing.assert_close(after.amax(1), before.amax(1))
    shares = [(part - part.amin(1, True)) / (part.amax(1, True) - part.amin(1, True)) for part in (before, after)]
    powers = shares[1].clamp(0.1, 0.9).log() / shares[0].clamp(0.1, 0.9).log()
    inner = (shares[0] > 0.2) & (shares[0] < 0.8) & (shares[1] > 0.2) & (shares[1] < 0.8)
    for power, is_inner in zip(powers, inner, strict=True):
        assert power[is_inner].std() < 1e-3
    middle = torch.tensor([power[is_inner].median() for power, is_inner in zip(powers, inner, strict=True)])
    assert 1 / 1.5 - 0.01 <= middle.min() < 0.75
    assert 1.35 < middle.max() <= 1.51


def test_noise_is_gaussian_and_of_each_pixel():
    images, _, _ = batch((60, 60), n_samples=40)
    noise = changed("noise", images) - images
    deviations = noise.flatten(1).std(1)
    assert deviations.max() <= 0.21
    assert deviations.min() < 0.05
    assert noise.mean().abs() < 0.01
    pairs = (noise[..., 1:] * noise[..., :-1]).mean() + (noise[:, 0] * noise[:, 1]).mean()
    assert pairs.abs() < 0.02 * noise.var()
    assert ((noise.abs() < deviations.reshape(-1, 1, 1, 1)).float().mean() - 0.683).abs() < 0.01


@pytest.mark.parametrize("size", [(31, 31), (21, 21, 21)])
def test_blur_is_a_gaussian_of_one_width_along_each_axis(size):
    images = torch.zeros(20, 1, *size)
    images[(slice(None), 0, *(side // 2 for side in size))] = 1
    points = changed("blur", images)[:, 0]
    torch.testing.assert_close(points.flatten(1).sum(1), torch.ones(20))
    squares = torch.stack(
        [
            (points.movedim(1 + axis, -1).flatten(1, -2).sum(1) * (torch.arange(side) - side // 2) ** 2).sum(1)
            for axis, side in enumerate(size)
        ]
    )  # (spatial_ndim, B)
    torch.testing.assert_close(squares, squares[:1].expand_as(squares))
    assert squares.max() <= 1.5**2
    assert squares.max() > 1.2**2
    sigmas = squares[0].sqrt()
    expected = ndimage.gaussian_filter(images[0, 0].numpy(), sigmas.max().item(), truncate=4)
    np.testing.assert_allclose(points[sigmas.argmax()], expected, atol=2e-3)


@pytest.mark.parametrize("size", [(32, 65), (8, 9, 64)])
def test_lower_resolution_takes_what_is_fine_alone(size):
    fine = torch.randn(20, 1, *size)
    ramp = torch.arange(float(size[-1])).expand(20, 1, *size)
    finer = (changed("low_resolution", fine).diff(dim=-1).square().mean() / fine.diff(dim=-1).square().mean()).item()
    assert finer < 0.6
    moved = (changed("low_resolution", ramp) - ramp)[..., 4:-4]
    assert moved.abs().max() <= 1
    assert moved.mean().abs() < 0.1  # the image stays where its mask is
    torch.testing.assert_close(changed("low_resolution", torch.ones(2, 1, *size)), torch.ones(2, 1, *size))


@pytest.mark.parametrize(("size", "spacing"), [((33, 33), None), ((17, 17, 17), None), ((17, 33, 33), (2, 1, 1))])
def test_elastic_displacements_are_in_pixels_and_smooth(size, spacing):
    for axis in range(len(size)):
        places = torch.arange(float(size[axis])).reshape(-1, *(1,) * (len(size) - 1 - axis)).expand(size)
        images = places.expand(300, 1, *size)
        moved = alone("elastic", spacing=spacing)(images, images[:, 0], None, np.random.default_rng(0))[0] - images
        middle = moved[(slice(None), 0, *(side // 2 for side in size))]
        assert middle.std().item() == pytest.approx(2 / (1 if spacing is None else spacing[axis]), rel=0.1)
        inside = moved[(slice(None), 0, *(slice(side // 4, -side // 4) for side in size))]
        assert inside.diff(dim=-1).abs().max() < 1.5


def test_constant_images_stay_finite():
    images = torch.ones(4, 1, 12, 12)
    augment = Augment(**PARTS, probability=1.0)
    assert augment(images, images[:, 0], None, np.random.default_rng(0))[0].isfinite().all()


def test_one_channel_always_stays():
    images = torch.ones(200, 3, 4, 4)
    out, _, _ = alone("channel_drop", channel_drop=0.99)(images, images[:, 0], None, np.random.default_rng(0))
    assert (out.flatten(2).amax(2).sum(1) >= 1).all()


def test_probability_is_that_of_a_sample():
    images, masks, _ = batch((4, 4), n_samples=2000)
    out, _, _ = alone("noise", probability=0.3)(images, masks, None, np.random.default_rng(0))
    changed = (out != images).flatten(1).any(1).float().mean()
    assert 0.25 < changed < 0.35


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"rotation": -1}, "rotation of Augment must be a number from 0 to inf"),
        ({"probability": 2}, "probability of Augment must be a number from 0 to 1"),
        ({"noise": "much"}, "noise of Augment must be"),
        ({"spacing": (1, 0)}, "spacing of Augment must be"),
        ({"spacing": (1, 1, 1)}, "one number per axis, 2"),
    ],
)
def test_what_is_out_of_range_is_refused(parameters, error, cells):
    with pytest.raises(ValueError, match=error):
        make_segmenter(augment=Augment(**parameters)).fit(*cells)


def test_the_default_is_stronger_where_few_images_train(cells):
    X, y = cells
    few, many = (X[:4], y[:4]), (np.resize(X, (17, *X.shape[1:])), np.resize(y, (17, *y.shape[1:])))
    volume = (X[None, :8], y[None, :8])
    for (images, masks), strength in [(few, 0.5), (many, 0), (volume, 0)]:
        default, same, other = (
            make_segmenter(augment=augment, max_epochs=1, train_split=None).fit(images, masks).predict_proba(images)
            for augment in ("default", strength, 0.5 - strength)
        )
        np.testing.assert_array_equal(default, same)
        assert not np.array_equal(default, other)


def test_by_default_light_has_other_colours(cells):
    X, y = np.repeat(cells[0][..., None], 3, axis=-1), cells[1]
    few, many = (X[:4], y[:4]), (np.resize(X, (17, *X.shape[1:])), np.resize(y, (17, *y.shape[1:])))
    coloured = {4: Augment.of_strength(0.5).set_params(brightness=0.5), 17: Augment(brightness=0.5)}
    for images, masks in (few, many):
        default, same, other = (
            make_segmenter(augment=augment, max_epochs=1, train_split=None).fit(images, masks).predict_proba(images)
            for augment in ("default", coloured[len(images)], 0.5 if len(images) == 4 else 0)
        )
        np.testing.assert_array_equal(default, same)
        assert not np.array_equal(default, other)


def test_the_segmenter_takes_objects_and_strengths(cells, tmp_path):
    X, y = cells
    for augment in (Augment(rotation=15, noise=0.1), 0.5, np.float32(0.5), 0):
        segmenter = make_segmenter(augment=augment, max_epochs=2).fit(X, y)
        again = make_segmenter(augment=augment, max_epochs=2, iterator_train__num_workers=1).fit(X, y)
        np.testing.assert_array_equal(segmenter.predict_proba(X), again.predict_proba(X))
        segmenter.save(tmp_path / "file")
        assert repr(UNetSegmenter.load(tmp_path / "file").augment) == repr(augment)
    with pytest.raises(ValueError, match="augment must be"):
        make_segmenter(augment=-1).fit(X, y)
    search = GridSearchCV(make_segmenter(augment=Augment()), {"augment__noise": [0, 5.0]}, cv=2).fit(X, y)
    scores = search.cv_results_["mean_test_score"]
    assert scores[0] != scores[1]


# ---- directions


def test_axes_with_a_direction_are_left_out_where_nothing_else_is_asked_for():
    masks = torch.arange(9).reshape(1, 3, 3).repeat(200, 1, 1)

    def kinds(augment, flip_axes):
        generator = np.random.default_rng(0)
        turned = augment_batch(augment, masks[:, None].float(), masks, None, generator, flip_axes=flip_axes)[1]
        return {tuple(mask.flatten().tolist()) for mask in turned}

    upright = tuple(range(9))
    sideways = tuple(masks[0].flip(-1).flatten().tolist())
    default = choose_augment("default", n_images=17, spatial_ndim=2, n_channels=1)
    assert kinds(default, (-1,)) == kinds(0, (-1,)) == kinds(Augment(), (-1,)) == {upright, sideways}
    assert kinds(default, ()) == {upright}
    assert len(kinds(default, (-2, -1))) == len(kinds(Augment(flip=True, turn=True), ())) == 8
    assert len(kinds(Augment(flip=True), (-1,))) == 4
    with pytest.raises(ValueError, match='flip of Augment must be "auto", True or False'):
        Augment(flip="up").check()

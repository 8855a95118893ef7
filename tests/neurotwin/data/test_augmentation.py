"""Augmentations against their definitions, and that they follow from seed, step and clip alone."""

import numpy as np
import pytest
import torch

from neurotwin.clip import Clip, Sample, Target
from neurotwin.config import ConfigError, ModelConfig, TrainingConfig, register
from neurotwin.data.augmentation import Augmentation, Contrast, Luminance, Shift, augment


@pytest.fixture
def sample() -> Sample:
    """Six clips of two channels, five frames of 7 x 9 pixels, mid-grey on the whole."""
    movie = torch.from_numpy(np.random.default_rng(0).integers(90, 160, (6, 2, 5, 7, 9), dtype=np.uint8))
    clip = Clip(3, 2, movie, bins=torch.arange(6) * 10)
    return Sample(clip, Target(torch.ones(6, 2, 1), torch.ones(6, 2, 1, dtype=torch.bool)))


def changed(sample: Sample, *augmentations: Augmentation, seed: int = 0, step: int = 0) -> torch.Tensor:
    return augment(sample, augmentations, seed=seed, step=step).clip.stimulus


def test_contrast_scales_about_the_mean_of_the_clip(sample):
    before, after = sample.clip.stimulus.double(), changed(sample, Contrast(amount=0.5)).double()
    factors = []
    for old, new in zip(before, after, strict=True):
        about = old - old.mean()
        factors.append(((new - new.mean()) * about).sum().item() / about.square().sum().item())
        torch.testing.assert_close(new, old.mean() + factors[-1] * about, atol=0.6, rtol=0)  # to a grey level
    assert len({round(factor, 3) for factor in factors}) == 6  # one draw a clip
    assert all(0.49 <= factor <= 1.51 for factor in factors) and max(factors) - min(factors) > 0.2


def test_luminance_adds_one_number_to_a_clip(sample):
    steps = (changed(sample, Luminance(amount=20.0)).int() - sample.clip.stimulus.int()).flatten(1)
    assert all(len(row.unique()) == 1 for row in steps)
    found = steps[:, 0].tolist()
    assert max(map(abs, found)) <= 20 and min(found) < -2 and max(found) > 2


def test_a_shift_moves_all_frames_alike_and_repeats_the_edge(sample):
    before, after = sample.clip.stimulus.numpy(), changed(sample, Shift(pixels=2)).numpy()
    found = set()
    for old, new in zip(before, after, strict=True):
        padded = np.pad(old, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
        windows = {
            (down, right): padded[:, :, 2 - down : 9 - down, 2 - right : 11 - right]
            for down in range(-2, 3)
            for right in range(-2, 3)
        }
        (moved,) = [by for by, window in windows.items() if np.array_equal(window, new)]
        found.add(moved)
    assert len(found) > 2


def test_a_shift_reaches_every_offset_and_no_other():
    movie = torch.zeros(1, 1, 1, 9, 9, dtype=torch.uint8)
    movie[..., 4, 4] = 1
    seen = set()
    for step in range(300):
        clip = Clip(0, 1, movie, bins=torch.tensor([0]))
        one = Sample(clip, Target(torch.ones(1, 1, 1), torch.ones(1, 1, 1)))
        seen.add(tuple(int(at) - 4 for at in changed(one, Shift(pixels=1), step=step)[0, 0, 0].nonzero()[0]))
    assert seen == {(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)}


ALL = (Shift(pixels=2), Contrast(amount=0.5), Luminance(amount=30.0))


def test_what_happens_to_a_clip_does_not_depend_on_the_others_of_its_batch(sample):
    whole = changed(sample, *ALL, step=5)
    for part in ([4, 1], [0], [5, 2, 3]):
        clip = Clip(3, 2, sample.clip.stimulus[part], bins=sample.clip.bins[part])
        assert torch.equal(changed(Sample(clip, sample.target), *ALL, step=5), whole[part])


def test_seed_step_and_session_change_it(sample):
    base = changed(sample, *ALL)
    other = Sample(Clip(4, 2, sample.clip.stimulus, bins=sample.clip.bins), sample.target)
    for different in (changed(sample, *ALL, step=1), changed(sample, *ALL, seed=1), changed(other, *ALL)):
        assert all(not torch.equal(a, b) for a, b in zip(base, different, strict=True))
    assert torch.equal(base, changed(sample, *ALL))


def test_8_bits_stay_8_bits_and_floats_are_not_cut(sample):
    bright = Luminance(amount=255.0)
    after = changed(sample, bright)
    assert after.dtype == torch.uint8 and {0, 255} & set(after.flatten().tolist())
    real = Sample(Clip(3, 2, sample.clip.stimulus.float() / 255, bins=sample.clip.bins), sample.target)
    assert changed(real, bright).abs().max() > 2
    assert changed(real, bright).dtype == torch.float32


def test_responses_and_originals_are_left_alone(sample):
    before = sample.clip.stimulus.clone()
    assert augment(sample, ALL, seed=0, step=0).target is sample.target
    assert torch.equal(sample.clip.stimulus, before)


def test_without_a_stimulus_there_is_nothing_to_do(sample):
    blind = Sample(Clip(3, 2, None, bins=sample.clip.bins), sample.target)
    assert augment(blind, ALL, seed=0, step=0) is blind


def test_model_files_name_them():
    config = TrainingConfig.model_validate({"augmentation": [{"type": "shift", "pixels": 3}, {"type": "contrast"}]})
    assert [part.params for part in config.augmentation] == [Shift(pixels=3), Contrast()]
    dumped = ModelConfig(training=config).model_dump(mode="json")["training"]
    assert dumped == {"augmentation": [{"type": "shift", "pixels": 3}, {"type": "contrast", "amount": 0.2}]}
    assert TrainingConfig.model_validate(dumped) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{type: shift, pixel: 3}", "m.yaml:2: training.augmentation.0.pixel: .*did you mean 'pixels'"),
        ("{type: mirror}", "unknown augmentation 'mirror'; "),
        ("{type: contrast, amount: 2}", "training.augmentation.0.amount"),
        ("{type: shift, pixels: 0}", "training.augmentation.0.pixels"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, text, message):
    from neurotwin.config import load_model_config

    path = tmp_path / "m.yaml"
    path.write_text(f"training:\n  augmentation: [{text}]\n")
    with pytest.raises(ConfigError, match=message):
        load_model_config(path)


def test_one_of_your_own_is_one_class(sample):
    @register("augmentation", "negative_of_test_augmentation")
    class Negative(Augmentation):
        """The negative."""

        def apply(self, movie, generator):
            return 255 - movie

    config = TrainingConfig.model_validate({"augmentation": ["negative_of_test_augmentation"]})
    assert torch.equal(changed(sample, config.augmentation[0].params), 255 - sample.clip.stimulus)

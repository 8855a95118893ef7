"""Single images with counts or single trials, on small files and on the public V4 recordings."""

import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from neurotwin.data.formats import as_session_file, find_format, read_session
from neurotwin.data.session import Session, SessionError

ROOT = Path(__file__).parents[4]
V4 = Path(os.environ.get("NEUROTWIN_REAL_DATA", ROOT.parent / "shared" / "data")) / "v4_images"


def test_single_trials_arrive(tmp_path, builder):
    path, written = builder("image_trials").build(tmp_path)
    assert find_format(path) == find_format(tmp_path) == "image_trials"
    session = read_session(path)
    session = Session.load(session.save(tmp_path / "s.safetensors"))
    assert (session.name, session.bin_rate) == ("210325", 10.0)
    rows = [(image, repeat) for image in range(12) for repeat in range(written["repeats"][image])]
    assert session.n_bins == len(rows) == written["repeats"].sum()
    for bin_, (image, repeat) in enumerate(rows):
        np.testing.assert_array_equal(session.stimulus[bin_], written["images"][image].transpose(2, 0, 1))
        np.testing.assert_array_equal(session.responses[bin_], written["trials"][:, image, repeat])
    lazy = read_session(path)
    for start in range(session.n_bins):
        np.testing.assert_array_equal(lazy.responses[start : start + 7], session.responses[start : start + 7])
        np.testing.assert_array_equal(lazy.stimulus[start : start + 7], session.stimulus[start : start + 7])
    image = np.array([image for image, _ in rows])
    np.testing.assert_array_equal(session.trial, image)
    # Equal ids exactly where the image is the same.
    np.testing.assert_array_equal(session.repeat_id[:, None] == session.repeat_id, image[:, None] == image)
    assert session.valid.all() and session.exposure is None
    padding = 12 * 5 - len(rows)
    assert f"{padding} presentations of 60 were left out, because they are padding (NaN)." in session.notes


def test_counts_arrive_with_their_exposure(tmp_path, builder):
    path, written = builder("image_trials").build(tmp_path, twice={7: 2, 9: 2})
    session = read_session(path, form="counts", bin_rate=5.0, name="PE_210325")
    assert (session.subject, session.bin_rate, session.n_bins) == ("PE", 5.0, 12)
    np.testing.assert_array_equal(session.responses[:], written["counts"])
    np.testing.assert_array_equal(session.exposure, written["repeats"])
    np.testing.assert_array_equal(session.stimulus[:], written["images"].transpose(0, 3, 1, 2))
    expected = np.arange(12)
    expected[[7, 9]] = 2
    np.testing.assert_array_equal(session.trial, expected)
    same = np.flatnonzero(session.repeat_id >= 0)
    assert same.tolist() == [2, 7, 9] and len(set(session.repeat_id[same])) == 1
    assert "2 images are the same as an earlier one, and count as repeats of it." in session.notes


def test_counts_are_what_single_trials_add_up_to(tmp_path, builder):
    path, _ = builder("image_trials").build(tmp_path, twice={3: 1})
    single, summed = read_session(path), read_session(path, form="counts")
    image = np.cumsum(np.append(True, (single.stimulus[1:] != single.stimulus[:-1]).any(axis=(1, 2, 3)))) - 1
    total = np.stack([single.responses[:][image == number].sum(axis=0) for number in range(12)])
    np.testing.assert_array_equal(total, summed.responses[:])


@pytest.mark.parametrize("variant", ["unpacked", "flat", "grey", "no session", "jpeg"])
def test_variants_of_the_archive(tmp_path, builder, variant):
    options = {
        "unpacked": {"unpacked": True}, "flat": {"inner": ""}, "grey": {"colour": False},
        "no session": {"session": ""}, "jpeg": {"extension": "jpg"},
    }[variant]  # fmt: skip
    path, written = builder("image_trials").build(tmp_path / "rec", trials=False, **options)
    assert find_format(tmp_path / "rec") == "image_trials"
    session = read_session(tmp_path / "rec")
    images = written["images"] if variant == "grey" else written["images"].transpose(0, 3, 1, 2)
    assert session.stimulus.shape == images.shape
    if variant == "jpeg":  # its pixels are not those that went in
        with zipfile.ZipFile(path) as archive, archive.open("images/image0003.jpg") as file:
            images = np.asarray(Image.open(file)).transpose(2, 0, 1)
        np.testing.assert_array_equal(session.stimulus[2:3][0], images)
    else:
        np.testing.assert_array_equal(session.stimulus[:], images)
    assert session.name == ("rec" if variant == "no session" else "210325")


def test_numbers_in_names_count_as_numbers(tmp_path, builder):
    _, written = builder("image_trials").build(tmp_path, padded_names=False)
    session = read_session(tmp_path, form="counts")
    np.testing.assert_array_equal(session.stimulus[:], written["images"].transpose(0, 3, 1, 2))
    assert any(note.endswith("image1.png, image2.png, image3.png, ...") for note in session.notes)


def test_images_can_be_made_smaller(tmp_path, builder):
    _, written = builder("image_trials").build(tmp_path)
    session = read_session(tmp_path, form="counts", reduce=2)
    mean = written["images"].reshape(12, 4, 2, 5, 2, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2)
    assert session.stimulus.shape == (12, 3, 4, 5)
    assert np.abs(session.stimulus[:] - mean).max() <= 0.5


def test_several_recordings_in_one_folder(tmp_path, builder):
    build = builder("image_trials").build
    build(tmp_path, session="190923")
    _, written = build(tmp_path, session="201025", seed=1)
    with pytest.raises(SessionError, match="holds the recordings 190923, 201025; choose one with session="):
        read_session(tmp_path)
    with pytest.raises(SessionError, match="did you mean '201025'"):
        read_session(tmp_path, session="20102")
    for options in ({"session": "201025"}, {"name": "PE_201025"}, {"name": "201025"}):
        session = read_session(tmp_path, form="counts", **options)
        np.testing.assert_array_equal(session.responses[:], written["counts"])
    assert read_session(tmp_path / "images_201025.zip").name == "201025"
    file = as_session_file(tmp_path, name="PE_201025", folder=tmp_path / "cache")
    assert Session.load(file).name == "PE_201025"


def test_an_archive_may_serve_several_recordings(tmp_path, builder):
    build = builder("image_trials").build
    _, written = build(tmp_path, session="")
    for name in ("counts", "repeats", "trials"):
        (tmp_path / f"{name}.npy").rename(tmp_path / f"{name}_a.npy")
        np.save(tmp_path / f"{name}_b.npy", np.load(tmp_path / f"{name}_a.npy") + 1)
    session = read_session(tmp_path, session="b", form="counts")
    np.testing.assert_array_equal(session.responses[:], written["counts"] + 1)


@pytest.mark.parametrize(
    ("images", "responses"),
    [("210325", "responses_210325"), ("scenes", "responses"), ("210325_stimuli", "210325_responses")],
)
def test_other_names_of_the_files(tmp_path, builder, images, responses):
    path, written = builder("image_trials").build(tmp_path, counts=False)
    path.rename(tmp_path / f"{images}.zip")
    (tmp_path / "trials_210325.npy").rename(tmp_path / f"{responses}.npy")
    assert find_format(tmp_path) == "image_trials"
    session = read_session(tmp_path / f"{images}.zip")
    assert session.n_bins == written["repeats"].sum()


def test_a_picture_has_the_same_part_in_every_session(tmp_path, builder):
    build = builder("image_trials").build
    _, one = build(tmp_path / "a", n_images=60, twice={50: 4})
    _, two = build(tmp_path / "b", n_images=60, session="x", seed=2)
    shares = {"val_share": 0.3, "test_share": 0.2}
    first = read_session(tmp_path / "a", form="counts", **shares)
    assert set(first.split) == {"train", "val", "test"}
    assert 0.05 < (first.split == "test").mean() < 0.4
    assert first.split[50] == first.split[4]
    # The other session shows some pictures of the first, in other rows.
    images = two["images"].copy()
    images[10:40] = one["images"][30:0:-1]
    with zipfile.ZipFile(tmp_path / "b" / "images_x.zip", "w") as archive:
        for number, image in enumerate(images):
            with archive.open(f"i{number:03d}.png", "w") as file:
                Image.fromarray(image).save(file, "png")
    second = read_session(tmp_path / "b", form="counts", **shares)
    np.testing.assert_array_equal(second.split[10:40], first.split[30:0:-1])
    assert read_session(tmp_path / "b").split is None
    with pytest.raises(SessionError, match="leave nothing to train on"):
        read_session(tmp_path / "b", val_share=0.5, test_share=0.5)


def test_presentations_without_all_units_are_masked(tmp_path, builder):
    _, written = builder("image_trials").build(tmp_path)
    values = written["trials"].copy()
    values[1, 0, 0] = np.nan
    values[:, 5] = np.nan
    np.save(tmp_path / "trials_210325.npy", values)
    session = read_session(tmp_path)
    assert np.flatnonzero(~session.valid).tolist() == [0]
    assert session.responses[:][0].tolist() == np.nan_to_num(values[:, 0, 0]).tolist()
    assert 5 not in session.trial
    assert any(note.startswith("1 images were left out") for note in session.notes)
    assert any(note.startswith("1 bins are not valid") for note in session.notes)


def test_images_never_shown_are_not_valid(tmp_path, builder):
    _, written = builder("image_trials").build(tmp_path, trials=False)
    repeats = written["repeats"].copy()
    repeats[3] = 0
    np.save(tmp_path / "repeats_210325.npy", repeats)
    session = read_session(tmp_path)
    assert np.flatnonzero(~session.valid).tolist() == [3]
    (tmp_path / "repeats_210325.npy").unlink()
    session = read_session(tmp_path)
    assert session.exposure is None
    assert any(note.startswith("There is no repeats_S.npy") for note in session.notes)


def test_mistakes_are_named(tmp_path, builder):
    build = builder("image_trials").build
    path, written = build(tmp_path)

    def save(name, values, **options):
        np.save(tmp_path / f"{name}_210325.npy", values, **options)

    save("trials", written["trials"][:, :7])
    with pytest.raises(SessionError, match=r"has the shape \(4, 7, 5\) for 12 images; give \(N, images, repeats\)"):
        read_session(path)
    save("trials", np.full_like(written["trials"], np.nan))
    with pytest.raises(SessionError, match="holds only NaN"):
        read_session(path)
    save("trials", np.array([object()]), allow_pickle=True)
    with pytest.raises(SessionError, match=r"trials_210325\.npy: not an array of numbers"):
        read_session(path)
    (tmp_path / "trials_210325.npy").unlink()
    with pytest.raises(SessionError, match="has no trials_S"):
        read_session(path, form="trials")
    save("repeats", written["repeats"][:3])
    with pytest.raises(SessionError, match="has 3 numbers for 12 images"):
        read_session(path)
    save("counts", written["counts"].T)
    with pytest.raises(SessionError, match=r"has 4 rows for 12 images; give \(images, N\)"):
        read_session(path)
    save("counts", written["counts"])
    save("repeats", written["repeats"])
    for content, message in [
        ({"a/x.png": (8, 10), "b/x.png": (8, 10)}, "holds a/x.png and b/x.png; base names give the order"),
        ({"x.png": (8, 10), "y.png": (8, 9)}, r"x.png has \(10, 8\) pixels, y.png has \(9, 8\); resize them alike"),
    ]:
        with zipfile.ZipFile(path, "w") as archive:
            for name, size in content.items():
                with archive.open(name, "w") as file:
                    Image.fromarray(np.zeros(size, np.uint8)).save(file, "png")
        with pytest.raises(SessionError, match=message):
            read_session(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.png", b"no image")
    with pytest.raises(SessionError, match=r"x\.png is not a whole image"):
        read_session(path)
    with zipfile.ZipFile(path, "w") as archive, archive.open("x.png", "w") as file:
        Image.fromarray(np.zeros((8, 8), np.uint16)).save(file, "png")
    with pytest.raises(SessionError, match=r"images of the modes \['I;16'\]; save them as 8-bit"):
        read_session(path)
    path.write_bytes(b"no archive")
    with pytest.raises(SessionError, match="not a recording of a known layout"):
        find_format(path)


def test_memory_does_not_grow_with_the_recording(tmp_path, builder):
    builder("image_trials").build(tmp_path, n_images=60, n_repeats=40, size=(120, 120))
    tracemalloc.start()
    read_session(tmp_path).save(tmp_path / "s.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "s.safetensors").stat().st_size > 48e6
    assert peak < 45e6


# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def v4():
    if not V4.is_dir():
        pytest.skip(f"{V4} is absent; set NEUROTWIN_REAL_DATA")
    return V4


def test_v4_counts(v4):
    session = read_session(v4, name="WE_190925", reduce=2)
    np.testing.assert_array_equal(session.responses[:], np.load(v4 / "counts_190925.npy"))
    np.testing.assert_array_equal(session.exposure, np.load(v4 / "repeats_190925.npy"))
    assert session.stimulus.shape == (1200, 3, 56, 56)
    with zipfile.ZipFile(v4 / "images_190925.zip") as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("image0601.jpg")]
        with archive.open(name) as file:
            pixels = np.asarray(Image.open(file), float)
    halved = pixels.reshape(56, 2, 56, 2, 3).mean((1, 3)).transpose(2, 0, 1)
    assert np.abs(session.stimulus[600:601][0] - halved).max() <= 0.5
    # The recording shows 300 images twice.
    np.testing.assert_array_equal(session.trial[900:], session.trial[:300])
    np.testing.assert_array_equal(session.repeat_id[900:], session.repeat_id[:300])
    assert (session.repeat_id[:300] >= 0).all()


def test_v4_single_trials_are_the_counts(v4):
    single, summed = read_session(v4, session="210325"), read_session(v4, session="210325", form="counts")
    repeats = np.load(v4 / "repeats_210325.npy")
    assert single.n_bins == repeats.sum()
    row = np.repeat(np.arange(640), repeats)
    total = np.zeros((640, 50))
    np.add.at(total, row, single.responses[:])
    np.testing.assert_array_equal(total, summed.responses[:])
    np.testing.assert_array_equal(single.trial, summed.trial[row])
    assert single.valid.all()
    session = read_session(v4, session="210325", val_share=0.2, test_share=0.2)
    assert 0.1 < (session.split == "val").mean() < 0.3

"""lib.ssm_init.data on the shipped digits and on tiny copies of the real formats."""

import pickle
import sys
import types
import wave

import numpy as np
import pytest
import torch

from lib.ssm_init import data as sd
from lib.ssm_init import layers as ly
from lib.ssm_init import training as tr
from lib.ssm_init.inits import init_diag

# -- digits -------------------------------------------------------------------------


@pytest.mark.parametrize("length", [64, 256])
def test_digits_are_split_by_seed(length):
    splits = sd.digits(length, seed=3, validation=280)
    sizes = [len(part) for part in (splits.train, splits.validation, splits.test)]
    assert sizes == [1120, 280, 397]
    x, y = splits.train[5]
    assert x.shape == (length, 1)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    rows = torch.tensor([5, 9])
    assert torch.equal(splits.train.fetch(rows)[0][0], x)
    assert splits.train.x.std() == pytest.approx(1, rel=1e-3)
    counts = torch.bincount(splits.validation.y)
    assert counts.min() >= 25
    again = sd.digits(length, seed=3, validation=280)
    assert torch.equal(again.test.x, splits.test.x)
    other = sd.digits(length, seed=4)
    assert not torch.equal(other.test.y, splits.test.y)
    assert len(other.train) == 1400
    assert len(other.validation) == 0
    assert splits.only_train().test is splits.validation


def test_the_parts_of_the_digits_do_not_overlap():
    splits = sd.digits(64, 0, 280)
    parts = (splits.train, splits.validation, splits.test)
    every = torch.cat([torch.round(p.x[..., 0] * 100) for p in parts])
    rows = np.unique(every.numpy(), axis=0)
    assert len(rows) == 1797  # no two digits are alike
    kept = torch.bincount(torch.cat([p.y for p in parts]))
    assert kept.sum() == 1797


def test_wrong_digits_are_said():
    with pytest.raises(ValueError, match="length is 100; give 64 or 256"):
        sd.digits(100)
    with pytest.raises(ValueError, match="validation is 1400, but there are 1400"):
        sd.digits(64, 0, 1400)


# -- CIFAR-10 -----------------------------------------------------------------------

NAMES = [b"plane", b"car", b"bird"]


def dump(path, content):
    with path.open("wb") as handle:
        pickle.dump(content, handle, protocol=2)


def cifar(folder, rows=6):
    """Five batches and a test batch in the python version's format."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for name in (*sd.CIFAR_TRAIN, "test_batch"):
        images = rng.integers(0, 256, (rows, 3072), dtype=np.uint8)
        labels = [int(k) % 3 for k in range(rows)]
        dump(folder / name, {b"data": images, b"labels": labels, b"batch_label": b"x"})
    dump(folder / "batches.meta", {b"label_names": NAMES, b"num_vis": 3072})
    return folder


@pytest.fixture
def folder(tmp_path):
    return cifar(tmp_path / "cifar-10-batches-py")


def test_cifar_from_a_folder(folder):
    colour = sd.sequential_cifar(folder, colour=True, validation=6, seed=1)
    assert colour.classes == ("plane", "car", "bird")
    parts = (colour.train, colour.validation, colour.test)
    assert [len(p) for p in parts] == [24, 6, 6]
    x, _ = colour.test[2]
    assert x.shape == (1024, 3)
    with (folder / "test_batch").open("rb") as handle:
        raw = pickle.load(handle, encoding="bytes")[b"data"][2]
    want = raw.reshape(3, 1024).T / 255  # red, green, blue planes
    got = x.numpy() * colour.test.std + colour.test.mean
    np.testing.assert_allclose(got, want, atol=1e-6)
    grey = sd.sequential_cifar(folder, validation=6, seed=1)
    assert grey.test[0][0].shape == (1024, 1)
    luma = grey.test[2][0].numpy() * grey.test.std + grey.test.mean
    np.testing.assert_allclose(luma, want @ sd.GREY[:, None], atol=1e-6)
    assert torch.equal(grey.train.y, colour.train.y)
    x, _ = grey.train.fetch(torch.arange(24))
    assert abs(float(x.mean())) < 1e-3
    assert float(x.std()) == pytest.approx(1, rel=1e-3)
    assert len(sd.sequential_cifar(folder, validation=0).train) == 30


class Column(list):
    """A part of a hub data set: columns by name."""

    column_names = ("img", "label")
    features = {"label": types.SimpleNamespace(names=["a", "b", "c"])}  # noqa: RUF012

    def __getitem__(self, name):
        return [row[name == "label"] for row in self]


def hub(parts):
    module = types.ModuleType("datasets")
    module.load_dataset = lambda name: parts
    return module


def test_cifar_from_the_hub(monkeypatch):
    from PIL import Image

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    rows = Column((Image.fromarray(p), k % 3) for k, p in enumerate(pixels))
    parts = {"train": rows, "test": rows}
    monkeypatch.setitem(sys.modules, "datasets", hub(parts))
    splits = sd.sequential_cifar(None, colour=True, validation=3)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [6, 3, 9]
    assert splits.classes == ("a", "b", "c")
    got = splits.test[4][0].numpy() * splits.test.std + splits.test.mean
    np.testing.assert_allclose(got, pixels[4].reshape(1024, 3) / 255, atol=1e-6)
    monkeypatch.setitem(sys.modules, "datasets", hub({"train": rows}))
    with pytest.raises(ValueError, match="no parts train and test with columns img"):
        sd.sequential_cifar(None)


def test_cifar_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="the package datasets is not installed"):
        sd.sequential_cifar(None)


class Trap:
    """A pickle that would run a command."""

    def __reduce__(self):
        import os

        return os.system, ("false",)


BROKEN_CIFAR = {
    "missing": (lambda f: (f / "data_batch_3").unlink(), "data_batch_3 is not in the"),
    "garbage": (
        lambda f: (f / "test_batch").write_bytes(b"nothing"),
        "test_batch is no readable batch",
    ),
    "not a dictionary": (
        lambda f: dump(f / "test_batch", [1]),
        "test_batch holds no dictionary",
    ),
    "a trap": (
        lambda f: dump(f / "test_batch", Trap()),
        "it asks for posix.system",
    ),
    "another shape": (
        lambda f: dump(f / "data_batch_1", {b"data": np.zeros((2, 5))}),
        "data_batch_1 holds data of shape (2, 5); expected (rows, 3072)",
    ),
    "CIFAR-100": (
        lambda f: dump(
            f / "data_batch_1",
            {b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [1, 2]},
        ),
        "holds 2 images and 0 labels",
    ),
    "names": (
        lambda f: dump(f / "batches.meta", {b"label_names": NAMES[:1]}),
        "names fewer classes",
    ),
}


@pytest.mark.parametrize("name", BROKEN_CIFAR)
def test_a_broken_cifar_is_said(folder, name):
    change, sentence = BROKEN_CIFAR[name]
    change(folder)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        sd.sequential_cifar(folder, validation=6)
    assert sentence in str(caught.value)


# -- Speech Commands ----------------------------------------------------------------


def write_wav(path, samples, rate=16000, channels=1, width=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as sound:
        sound.setparams((channels, width, rate, 0, "NONE", ""))
        sound.writeframes(np.asarray(samples).tobytes())


@pytest.fixture
def words(tmp_path):
    """Three words of four recordings, of different lengths."""
    rng = np.random.default_rng(0)
    root = tmp_path / "speech_commands"
    for word in ("no", "up", "yes"):
        for k, length in enumerate((16000, 12000, 17000, 16000)):
            samples = rng.integers(-9000, 9000, length).astype("<i2")
            write_wav(root / word / f"{k}.wav", samples)
    write_wav(root / "_background_noise_" / "tap.wav", np.zeros(9, "<i2"))
    (root / "validation_list.txt").write_text("no/0.wav\nup/0.wav\nyes/0.wav\n")
    (root / "testing_list.txt").write_text("no/1.wav\nyes/2.wav\n\n")
    (root / "README.md").write_text("x")
    return root


def test_words_follow_the_official_lists(words):
    splits = sd.speech_commands(words)
    assert splits.classes == ("no", "up", "yes")
    assert splits.validation.files == ("no/0.wav", "up/0.wav", "yes/0.wav")
    assert splits.test.files == ("no/1.wav", "yes/2.wav")
    assert len(splits.train) == 7
    assert not set(splits.train.files) & {*splits.test.files, *splits.validation.files}
    x, y = splits.test[0]
    assert x.shape == (16000, 1)
    assert int(y) == 0
    assert (x[12000:] == 0).all()  # padded
    assert (x[:12000] != 0).any()
    long, y = splits.test[1]
    assert long.shape == (16000, 1)  # cut
    assert int(y) == 2
    with wave.open(str(words / "yes" / "2.wav")) as sound:
        raw = np.frombuffer(sound.readframes(16000), "<i2") / 32768
    np.testing.assert_array_equal(long[:, 0].numpy(), raw.astype(np.float32))


def test_words_at_half_the_rate(words):
    whole, half = sd.speech_commands(words), sd.speech_commands(words, half_rate=True)
    assert half.test[0][0].shape == (8000, 1)
    assert torch.equal(half.test[0][0], whole.test[0][0][::2])
    assert half.train.files == whole.train.files


BROKEN_WORDS = {
    "no folder": (lambda f: f.rename(f.with_name("other")), "is not in the folder"),
    "no list": (lambda f: (f / "testing_list.txt").unlink(), "testing_list.txt is not"),
    "a lost file": (lambda f: (f / "no" / "1.wav").unlink(), "1 listed files are"),
    "both lists": (
        lambda f: (f / "testing_list.txt").write_text("no/0.wav\n"),
        "1 files are in both lists",
    ),
    "an empty word": (
        lambda f: (f / "maybe").mkdir(),
        "The word folder 'maybe' holds no wav file",
    ),
    "no words": (
        lambda f: [(f / w).rename(f / f"_{w}") for w in ("no", "up", "yes")],
        "holds 0 word folders",
    ),
    "stereo": (
        lambda f: write_wav(f / "no" / "2.wav", np.zeros(8, "<i2"), channels=2),
        "no/2.wav has 2 channels of 16 bits at 16000 Hz; expected 1",
    ),
    "rate": (
        lambda f: write_wav(f / "no" / "2.wav", np.zeros(8, "<i2"), rate=8000),
        "at 8000 Hz; expected 1 of 16 bits at 16000 Hz",
    ),
    "garbage": (
        lambda f: (f / "no" / "2.wav").write_bytes(b"RIFF"),
        "no/2.wav is no readable wav file",
    ),
}


@pytest.mark.parametrize("name", BROKEN_WORDS)
def test_broken_words_are_said(words, name):
    change, sentence = BROKEN_WORDS[name]
    change(words)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        _ = [sd.speech_commands(words).train[k] for k in range(7)]
    assert sentence in str(caught.value)


# -- through the training loop ------------------------------------------------------


def classifier(channels, classes):
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    return ly.Classifier(
        channels,
        4,
        1,
        classes,
        layer=lambda: ly.S4D(init_diag("lin", 4, 4, rng=rng)),
    )


def test_real_formats_train_and_resume(folder, words, tmp_path):
    cases = {
        "cifar": (sd.sequential_cifar(folder, colour=True, validation=6), 3),
        "words": (sd.speech_commands(words), 1),
    }
    for name, (splits, channels) in cases.items():
        short = {"epochs": 2, "batch": 8, "validation": splits.validation}
        want = tr.train(classifier(channels, 3), splits.train, **short)
        assert np.isfinite(want["loss"]).all()
        path = tmp_path / f"{name}.pt"

        def stop(step, steps, loss):
            if 2 * step > steps:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            tr.train(
                classifier(channels, 3),
                splits.train,
                **short,
                on_step=stop,
                checkpoint=path,
            )
        model = classifier(channels, 3)
        assert tr.train(model, splits.train, **short, checkpoint=path) == want
        assert 0 <= tr.accuracy(model, splits.test, batch=4) <= 1
    half = sd.speech_commands(words, half_rate=True)
    assert 0 <= tr.accuracy(model, half.test, rate=2.0) <= 1

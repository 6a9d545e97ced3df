"""Sequences to classify: digits for every machine, CIFAR-10 and words at full size.

Every loader returns `Splits` of torch data sets with the same three parts for the same
seed. An item is x (length, channels) float32 and a class number. Data sets with a
method `fetch(rows)` give whole batches at once, which `training.batches` prefers.
Sources: scikit-learn's digits; sequential CIFAR-10, 2111.00396; Speech Commands,
1804.03209 (its own lists of validation and test files), whole words 35 classes as in
2206.11893.
"""

from __future__ import annotations

import pickle
import wave
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from lib.hippo import digit_sequences, digit_split
from lib.kit.checks import need

CIFAR_TRAIN = tuple(f"data_batch_{k}" for k in range(1, 6))
GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601 luma
WORD_RATE = 16000


@dataclass(frozen=True)
class Splits:
    """Three fixed parts of one data set. train, validation, test: torch data sets of
    (x (length, channels), label); classes: their names in order. `validation` may be
    empty. Source: this collection."""

    train: Dataset
    validation: Dataset
    test: Dataset
    classes: tuple[str, ...]

    def only_train(self) -> Splits:
        """The same without the test part, for choosing hyper-parameters."""
        return replace(self, test=self.validation)


class Arrays(Dataset):
    """Sequences held in memory. x: (rows, length, channels); y: (rows,)."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x = torch.from_numpy(np.ascontiguousarray(x, np.float32))
        self.y = torch.from_numpy(np.asarray(y, np.int64))

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[row], self.y[row]

    def fetch(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x (batch, length, channels), y (batch,) of some rows."""
        return self.x[rows], self.y[rows]


class Images(Arrays):
    """Images as sequences of pixels, kept as bytes and scaled when asked for.

    images: (rows, pixels, 3) uint8; y: (rows,); colour: three channels, or one grey;
    mean, std: (channels,) of the training pixels in [0, 1].
    """

    def __init__(self, images, y, colour: bool, mean, std) -> None:
        self.images, self.colour = images, colour
        self.y = torch.from_numpy(np.asarray(y, np.int64))
        self.mean, self.std = np.float32(mean), np.float32(std)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = self.fetch(torch.tensor([row]))
        return x[0], y[0]

    def fetch(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x (batch, pixels, channels), y (batch,) of some rows."""
        x = _channels(self.images[rows.numpy()], self.colour)
        return torch.from_numpy((x - self.mean) / self.std), self.y[rows]


def _channels(images: np.ndarray, colour: bool) -> np.ndarray:
    x = images.astype(np.float32) / 255
    return x if colour else (x @ GREY)[..., None]


def _set_apart(labels: np.ndarray, count: int, seed: int) -> tuple:
    """Rows that stay and rows set apart, stratified where every class has enough."""
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(labels))
    if not count:
        return rows, rows[:0]
    sizes = np.unique(labels, return_counts=True)[1]
    need(
        0 < count < len(rows),
        f"validation is {count}, but there are {len(rows)} training rows; keep some.",
    )
    enough = sizes.min() >= 2 and min(count, len(rows) - count) >= len(sizes)
    by = labels if enough else None
    return train_test_split(rows, test_size=count, stratify=by, random_state=seed)


# -- digits -------------------------------------------------------------------------


def digits(length: int = 64, seed: int = 0, validation: int = 0) -> Splits:
    """scikit-learn's handwritten digits, pixel after pixel, 1400 to train, 397 to test.

    length: 64 or 256; seed: of the split (as in notebook 11) and of the validation
    part; validation: how many training rows are set apart. Inputs are divided by the
    standard deviation of the training part. Returns Splits, one channel.
    Raises ValueError for a length or a validation part. Source: scikit-learn.
    """
    u, labels = digit_sequences(length)
    train, test = digit_split(labels, seed)
    keep, apart = _set_apart(labels[train], validation, seed)
    scale = u[train[keep]].std()
    parts = [
        Arrays(u[rows, :, None] / scale, labels[rows])
        for rows in (train[keep], train[apart], test)
    ]
    return Splits(*parts, classes=tuple("0123456789"))


# -- sequential CIFAR-10 ------------------------------------------------------------


def sequential_cifar(
    folder: str | Path | None = None,
    *,
    colour: bool = False,
    validation: int = 5000,
    seed: int = 0,
    hub: str = "uoft-cs/cifar10",
) -> Splits:
    """CIFAR-10 images as sequences of 1024 pixels, row by row.

    folder: the unpacked python version (cifar-10-batches-py), None to load `hub` with
    the package datasets; colour: three channels instead of grey; validation: training
    rows set apart by seed. Pixels are standardised by the training part. Returns
    Splits. Raises FileNotFoundError, ValueError (a malformed batch) or ImportError (no
    package datasets) in a sentence. Source: Krizhevsky 2009; 2111.00396.
    """
    parts = _cifar_hub(hub) if folder is None else _cifar_folder(Path(folder))
    (images, labels), (test_images, test_labels), classes = parts
    keep, apart = _set_apart(labels, validation, seed)
    sample = _channels(images[keep[:10000]], colour)
    mean, std = sample.mean(axis=(0, 1)), sample.std(axis=(0, 1)) + 1e-8

    def part(x: np.ndarray, y: np.ndarray) -> Images:
        return Images(x, y, colour, mean, std)

    train, held = part(images[keep], labels[keep]), part(images[apart], labels[apart])
    return Splits(train, held, part(test_images, test_labels), classes)


def _unpickle(path: Path) -> dict:
    _need_file(path, "the python version of CIFAR-10, unpacked (cifar-10-batches-py)")
    try:
        with path.open("rb") as handle:
            found = _Plain(handle, encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise ValueError(
            f"{path.name} is no readable batch ({type(error).__name__}: {error}); "
            "unpack cifar-10-python.tar.gz again."
        ) from None
    need(isinstance(found, dict), f"{path.name} holds no dictionary; unpack it again.")
    return found


class _Plain(pickle.Unpickler):
    """Reads arrays and plain containers only: a pickle from elsewhere may run code."""

    ALLOWED = ("_reconstruct", "ndarray", "dtype", "_frombuffer", "scalar")

    def find_class(self, module: str, name: str):
        if module.split(".")[0] == "numpy" and name in self.ALLOWED:
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _need_file(path: Path, expected: str) -> None:
    if not path.exists():
        raise FileNotFoundError(
            f"{path.name} is not in the folder {str(path.parent)!r}; expected "
            f"{expected}. Give that folder."
        )


def _cifar_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    found = _unpickle(path)
    images, labels = found.get(b"data"), found.get(b"labels")
    shape = getattr(images, "shape", None)
    need(
        shape is not None and len(shape) == 2 and shape[1] == 3072,
        f"{path.name} holds data of shape {shape}; expected (rows, 3072) bytes under "
        "the key b'data'. Is it CIFAR-10's python version?",
    )
    need(
        labels is not None and len(labels) == len(images),
        f"{path.name} holds {len(images)} images and "
        f"{0 if labels is None else len(labels)} labels under b'labels'; expected as "
        "many. Is it CIFAR-10 (not CIFAR-100)?",
    )
    images = np.asarray(images, np.uint8).reshape(-1, 3, 1024).transpose(0, 2, 1)
    return images, np.asarray(labels, np.int64)


def _cifar_folder(folder: Path) -> tuple:
    train = [_cifar_batch(folder / name) for name in CIFAR_TRAIN]
    images, labels = (np.concatenate(parts) for parts in zip(*train))
    names = _unpickle(folder / "batches.meta").get(b"label_names")
    need(
        bool(names) and labels.max() < len(names),
        "batches.meta names fewer classes than the labels use; unpack it again.",
    )
    classes = tuple(name.decode() for name in names)
    return (images, labels), _cifar_batch(folder / "test_batch"), classes


def _cifar_hub(hub: str) -> tuple:
    try:
        import datasets
    except ImportError:
        raise ImportError(
            "No folder was given and the package datasets is not installed: give the "
            "folder of cifar-10-batches-py, or `pip install datasets`."
        ) from None
    loaded = datasets.load_dataset(hub)
    need(
        {"train", "test"} <= set(loaded)
        and {"img", "label"} <= set(loaded["train"].column_names),
        f"The data set {hub!r} has no parts train and test with columns img and label; "
        "give one like uoft-cs/cifar10.",
    )

    def arrays(part) -> tuple[np.ndarray, np.ndarray]:
        images = np.stack([np.asarray(image, np.uint8) for image in part["img"]])
        return images.reshape(len(images), -1, 3), np.asarray(part["label"])

    classes = tuple(loaded["train"].features["label"].names)
    return arrays(loaded["train"]), arrays(loaded["test"]), classes


# -- Speech Commands ----------------------------------------------------------------


class Words(Dataset):
    """One-second recordings, read when asked for.

    folder: of the data set; files: names "word/file.wav"; y: class numbers; half_rate:
    every second sample. An item is x (16000 or 8000, 1) in [-1, 1) and its class.
    """

    def __init__(self, folder: Path, files: Sequence[str], y, half_rate: bool) -> None:
        self.folder, self.files = Path(folder), tuple(files)
        self.y, self.half_rate = torch.tensor(list(y), dtype=torch.int64), half_rate

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = read_word(self.folder / self.files[row])[:: 2 if self.half_rate else 1]
        return torch.from_numpy(x.copy())[:, None], self.y[row]


def read_word(path: str | Path) -> np.ndarray:
    """One recording as (16000,) float32, cut or padded with zeros at its end.

    path: a mono 16-bit wav file at 16 kHz. Raises FileNotFoundError, or ValueError
    saying what the file is instead. Source: the format of 1804.03209.
    """
    path = Path(path)
    _need_file(path, "Speech Commands, one folder of wav files a word")
    try:
        with wave.open(str(path), "rb") as sound:
            form = (sound.getnchannels(), 8 * sound.getsampwidth())
            rate, raw = sound.getframerate(), sound.readframes(WORD_RATE)
    except (wave.Error, EOFError) as error:
        raise ValueError(
            f"{path.parent.name}/{path.name} is no readable wav file ({error}); unpack "
            "the archive again."
        ) from None
    need(
        form == (1, 16) and rate == WORD_RATE,
        f"{path.parent.name}/{path.name} has {form[0]} channels of {form[1]} bits at "
        f"{rate} Hz; expected 1 of 16 bits at {WORD_RATE} Hz. Convert it.",
    )
    x = np.frombuffer(raw, "<i2").astype(np.float32) / 32768
    return np.pad(x, (0, WORD_RATE - len(x)))


def _official(folder: Path, name: str) -> list[str]:
    _need_file(folder / name, "Speech Commands v0.02 with its own lists")
    text = (folder / name).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]


def speech_commands(folder: str | Path, *, half_rate: bool = False) -> Splits:
    """Speech Commands, every word a class (35 in v0.02), whole recordings of 1 s.

    folder: the unpacked archive, one folder a word, validation_list.txt and
    testing_list.txt beside them; all other files train. half_rate: every second sample
    without a filter, for a model trained at 16 kHz and run with rate=2.
    Returns Splits, one channel of 16000 (8000) steps. Raises FileNotFoundError or
    ValueError in a sentence. Source: 1804.03209; zero-shot rate change 2111.00396.
    """
    folder = Path(folder)
    _need_file(folder, "the folder of Speech Commands v0.02, unpacked")
    words = sorted(
        p.name for p in folder.iterdir() if p.is_dir() and p.name[0] not in "._"
    )
    need(
        len(words) >= 2,
        f"The folder {str(folder)!r} holds {len(words)} word folders; expected one a "
        "word (35 in v0.02). Give the folder into which the archive was unpacked.",
    )
    every = sorted(f"{word}/{p.name}" for word in words for p in _wavs(folder / word))
    validation = _official(folder, "validation_list.txt")
    test = _official(folder, "testing_list.txt")
    lost = sorted((set(validation) | set(test)) - set(every))
    need(
        not lost,
        f"{len(lost)} listed files are missing, {lost[:1]} first; unpack the archive "
        "again.",
    )
    both = set(validation) & set(test)
    need(not both, f"{len(both)} files are in both lists; take the official ones.")
    apart = set(validation) | set(test)
    train = [name for name in every if name not in apart]

    def part(names: list[str]) -> Words:
        labels = [words.index(name.split("/")[0]) for name in names]
        return Words(folder, names, labels, half_rate)

    return Splits(part(train), part(validation), part(test), tuple(words))


def _wavs(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.wav"))
    need(bool(found), f"The word folder {folder.name!r} holds no wav file; remove it.")
    return found

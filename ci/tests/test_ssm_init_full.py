"""lib.ssm_init.full on tiny copies of the real formats."""

import json
import math
import pickle
import tarfile
import wave

import numpy as np
import pytest
import torch

from lib.kit.cache import CacheError
from lib.ssm_init import full
from lib.ssm_init.data import CIFAR_TRAIN, Images, Splits
from lib.ssm_init.inits import init_diag
from lib.ssm_init.layers import S4, S4D, init_dplr
from lib.ssm_init.theory import legs_half

TONES = [f"{k}_{m}" for k in ("legs", "initial", "trained") for m in range(3)]
TONES.append("control")
TINY = {"epochs": 2, "width": 4, "depth": 1}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def dump(path, content):
    with path.open("wb") as handle:
        pickle.dump(content, handle, protocol=2)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """Five batches and a test batch of 8 images in the python version's format."""
    folder = tmp_path_factory.mktemp("cifar") / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in (*CIFAR_TRAIN, "test_batch"):
        images = rng.integers(0, 256, (8, 3072), dtype=np.uint8)
        dump(folder / name, {b"data": images, b"labels": [k % 2 for k in range(8)]})
    dump(folder / "batches.meta", {b"label_names": [b"plane", b"car"]})
    return folder


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Two words of five recordings: low and high tones."""
    root = tmp_path_factory.mktemp("words") / "speech_commands"
    rng, k = np.random.default_rng(0), np.arange(16000)
    for word, pitch in (("no", 0.02), ("yes", 0.3)):
        (root / word).mkdir(parents=True)
        for take in range(5):
            x = 4000 * np.sin(pitch * k) + rng.normal(0, 500, len(k))
            with wave.open(str(root / word / f"{take}.wav"), "wb") as sound:
                sound.setparams((1, 2, 16000, 0, "NONE", ""))
                sound.writeframes(x.astype("<i2").tobytes())
    (root / "validation_list.txt").write_text("no/0.wav\nyes/0.wav\n")
    (root / "testing_list.txt").write_text("no/1.wav\nyes/1.wav\n")
    return root


@pytest.fixture
def images(cifar):
    return full.load("cifar", folder=cifar, validation=8)


def complete(row):
    """Every measure is there, finite and a share; every tone is between 0 and pi."""
    names = ["accuracy", "validation", *TONES]
    assert all(0 <= row[name] <= 1 for name in names), row
    assert all(0 < row[f"theta_{name}"] < math.pi for name in TONES), row
    assert math.isfinite(row["loss"])
    assert row["parameters"] > 0


# -- runs ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", full.ALL_KINDS)
def test_every_kind_runs_and_is_attacked(kind, images):
    row = full.full_run("cifar", kind, 0, data=images, **{**TINY, "epochs": 1})
    complete(row)
    assert row["kind"] == kind
    assert (row["train"], row["test"]) == (32, 8)
    assert "half_rate" not in row


def test_the_same_tones_for_every_kind(images):
    rows = [
        full.full_run("cifar", kind, 3, data=images, **{**TINY, "epochs": 1})
        for kind in ("legs", "legs_dplr", "real_matched")
    ]
    for m in range(3):
        assert len({row[f"theta_legs_{m}"] for row in rows}) == 1
    # real poles do not turn: they meet the spikes of S4D-LegS only
    real = [rows[2][f"theta_initial_{m}"] for m in range(3)]
    assert real == [rows[2][f"theta_legs_{m}"] for m in range(3)]


def test_words_at_half_the_rate(words):
    data = full.load("speech_commands", folder=words)
    row = full.full_run("speech_commands", "lin", 0, data=data, **TINY)
    complete(row)
    assert 0 <= row["half_rate"] <= 1
    assert row["readout"] == "last"


class Killed(BaseException):
    pass


@pytest.mark.parametrize("kind", ["lin", "legs_ptd"])
def test_a_killed_run_goes_on_to_the_same_row(kind, images, tmp_path):
    want = full.full_run("cifar", kind, 1, data=images, **TINY)
    steps = []

    def stop(step, total, loss):
        steps.append(step)
        if 2 * step > total:
            raise Killed

    how = {"data": images, "folder": tmp_path, **TINY}
    with pytest.raises(Killed):
        full.full_run("cifar", kind, 1, **how, progress=stop)
    assert [path.suffix for path in tmp_path.iterdir()] == [".pt"]
    steps.clear()
    got = full.full_run("cifar", kind, 1, **how, progress=lambda *a: steps.append(a))
    assert got == want
    assert len(steps) == 1  # the second epoch only
    again = full.full_run("cifar", kind, 1, **how, progress=stop)
    assert again == want  # read, not run
    assert len(steps) == 1


def test_a_run_killed_while_measured_goes_on(images, tmp_path, monkeypatch):
    want = full.full_run("cifar", "inv", 0, data=images, **TINY)
    how = {"data": images, "folder": tmp_path, **TINY}

    def killed(*args, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(full, "robustness", killed)
        with pytest.raises(Killed):
            full.full_run("cifar", "inv", 0, **how)
    assert full.full_run("cifar", "inv", 0, **how) == want


def test_half_a_row_is_measured_again(images, tmp_path):
    how = {"data": images, "folder": tmp_path, **TINY}
    want = full.full_run("cifar", "lin", 0, **how)
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text()) == want
    path.write_text(path.read_text()[:50])
    assert full.full_run("cifar", "lin", 0, **how) == want


def test_other_settings_are_other_runs(images, tmp_path):
    for change in ({}, {"width": 6}, {"rows": 4}, {"epochs": 1}):
        how = {**TINY, **change}
        full.full_run("cifar", "lin", 0, data=images, folder=tmp_path, **how)
    assert len(list(tmp_path.glob("*.json"))) == 4


def test_other_data_in_one_folder_are_said(images, cifar, tmp_path):
    how = {"folder": tmp_path, **TINY}
    full.full_run("cifar", "lin", 0, data=images, **how)
    other = full.load("cifar", folder=cifar, validation=4)
    with pytest.raises(ValueError, match="on other data: 32 train rows, now 36"):
        full.full_run("cifar", "lin", 0, data=other, **how)


# -- tables -------------------------------------------------------------------------


def test_a_table_is_resumed_and_never_repeats(images, tmp_path, monkeypatch, capsys):
    how = {"data": {"cifar": images}, "folder": tmp_path, **TINY}
    seen = []

    def stop(row):
        seen.append(row)
        if len(seen) == 3:
            raise Killed

    with pytest.raises(Killed):
        full.full_table(["cifar"], ["lin", "legs"], range(2), **how, on_run=stop)
    frame = full.full_table(["cifar"], ["lin", "legs"], range(2), **how, bar=True)
    assert "4/4" in capsys.readouterr().err
    assert list(frame["kind"]) == ["lin", "legs"] * 2
    assert list(frame["seed"]) == [0, 0, 1, 1]
    for row, old in zip(frame.to_dict("records"), seen):
        assert row == old
        complete(row)
    # finished: neither data nor training are needed
    for name in ("load", "train"):
        monkeypatch.setattr(full, name, None)
    again = full.full_table(
        ["cifar"], ["lin", "legs"], range(2), folder=tmp_path, **TINY
    )
    assert again.equals(frame)


def test_a_table_loads_what_is_left_to_run(cifar, tmp_path, monkeypatch):
    asked, real = [], full.load

    def load(task):
        asked.append(task)
        return real(task, folder=cifar, validation=8)

    monkeypatch.setattr(full, "load", load)
    frame = full.full_table(["cifar"], ["lin"], [0, 1], folder=tmp_path, **TINY)
    assert len(frame) == 2
    assert asked == ["cifar"]


def test_a_diverged_run_does_not_stop_the_table(images, tmp_path, monkeypatch):
    real = full.train

    def train(model, data, **how):
        if how["seed"] == 0:
            raise FloatingPointError("The loss is nan at step 3: lower lr")
        return real(model, data, **how)

    monkeypatch.setattr(full, "train", train)
    how = {"data": {"cifar": images}, "folder": tmp_path, **TINY}
    frame = full.full_table(["cifar"], ["lin"], [0, 1], **how)
    assert frame["failed"][0] == "The loss is nan at step 3: lower lr"
    assert math.isnan(frame["accuracy"][0])
    assert 0 <= frame["accuracy"][1] <= 1
    again = full.full_table(["cifar"], ["lin"], [0, 1], **how)
    assert again.equals(frame)


# -- tones --------------------------------------------------------------------------


def one_layer(rule="zoh", dt=1e-3, H=4, **options):
    rng = np.random.default_rng(0)
    init = init_diag("legs", 64, H, rng=rng, dt_range=(dt, dt), **options)
    init["C"] = np.ones_like(init["C"])
    return S4D(init, rule=rule, dtype=torch.float64)


@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
def test_the_analytic_spikes_are_found(rule):
    omega, dt = legs_half(64)[0].imag[:3], 1e-3
    want = omega * dt if rule == "zoh" else 2 * np.arctan(omega * dt / 2)
    np.testing.assert_allclose(full.legs_tones(64, dt, rule), want, rtol=1e-12)
    theta, gain = full.resonances(one_layer(rule), 16384)
    np.testing.assert_allclose(np.sort(theta), np.sort(want), rtol=1e-6)
    # |C B| / |Re A| of an isolated mode, times what the rule leaves of it
    B = np.abs(legs_half(64)[1][:3]) / 2
    held = np.abs(np.expm1(1j * want) / want) if rule == "zoh" else 1 / np.cos(want / 2)
    order = np.argsort(-theta)
    np.testing.assert_allclose(gain[order], (B / 0.5 * held), rtol=0.1)


def test_fast_modes_fold_under_zoh_only():
    theta = full.legs_tones(64, 0.01)
    assert (theta <= np.pi).all()
    omega = legs_half(64)[0].imag[0] * 0.01
    assert theta[0] == pytest.approx(abs(np.angle(np.exp(1j * omega))))
    assert full.legs_tones(64, 0.01, "bilinear")[0] < np.pi
    with pytest.raises(ValueError, match="The rule is 'euler'"):
        full.legs_tones(64, 0.01, "euler")


def response(layer, theta, L=4096):
    """The RMS of every channel's answer to a tone, settled: the largest of them."""
    with torch.no_grad():
        u = torch.cos(theta * torch.arange(L, dtype=torch.float64))
        y = layer(u[None, :, None].expand(1, L, len(layer.D)))
        y = y - u[None, :, None] * layer.D
    return float(y[0, L // 2 :].square().mean(dim=0).sqrt().max())


def test_a_resonance_rings_and_the_control_does_not():
    layer = one_layer(dt=2e-3)
    theta, gain = full.resonances(layer, 4096)
    loud = [response(layer, t) for t in theta]
    np.testing.assert_allclose(loud, gain / np.sqrt(2), rtol=0.05)
    quiet = full.quiet_tone(layer, 4096, theta)
    assert min(theta) / 2 <= quiet <= max(theta) * 1.5
    assert response(layer, quiet) < 0.05 * min(loud)


def test_s4_stays_quiet_where_s4d_rings():
    rng = np.random.default_rng(0)
    options = {"rng": rng, "dt_range": (1e-3, 1e-3)}
    s4 = S4(init_dplr(64, 2, **options), dtype=torch.float64)
    with torch.no_grad():
        s4.C.copy_(torch.tensor([1.0, 0.0]))
    theta = full.legs_tones(64, 1e-3, "bilinear")
    diagonal = one_layer("bilinear")
    assert response(s4, theta[0], 8192) < 0.2 * response(diagonal, theta[0], 8192)
    _, gain = full.resonances(s4, 4096)
    assert gain.max() < 0.5 * full.resonances(diagonal, 4096)[1].max()


def test_real_and_slow_poles_have_no_resonance():
    rng = np.random.default_rng(0)
    real = S4D(init_diag("real", 8, 3, rng=rng))
    assert len(full.resonances(real, 256)[0]) == 0
    fallback = np.array([0.3, 0.2, 0.1])
    np.testing.assert_array_equal(full.attack(real, 256, fallback), fallback)
    slow = S4D(init_diag("lin", 8, 3, rng=rng, dt_range=(1e-5, 1e-5)))
    assert len(full.resonances(slow, 256)[0]) == 0


def test_tones_are_as_loud_as_the_data(images):
    x = images.train.fetch(torch.arange(32))[0]
    assert full._deviation(images.train) == pytest.approx(float(x.std()), rel=1e-6)
    assert full.median_step(one_layer(dt=3e-3)) == pytest.approx(3e-3)


# -- models -------------------------------------------------------------------------


def test_the_paper_sizes():
    cifar = full.settings_of("cifar", "legs", 0)
    model = full.full_classifier(cifar, 3, 10)
    assert len(model.blocks) == 4
    block = model.blocks[0]
    assert block.layer.A_im.shape == (128, 32)
    assert block.backward_layer is not None
    assert not block.prenorm
    assert block.dropout.p == 0.1
    speech = full.full_classifier(full.settings_of("speech_commands", "lin", 0), 1, 35)
    assert speech.readout == "last"
    assert speech.blocks[0].backward_layer is None
    assert speech.blocks[0].prenorm
    assert 45000 // cifar["batch"] * cifar["epochs"] == 90000
    assert 45000 // cifar["batch"] * cifar["warmup"] == 900


def test_kinds_share_all_but_the_recurrence():
    models = [
        full.full_classifier(full.settings_of("cifar", kind, 5, **TINY), 3, 10)
        for kind in ("legs", full.OPTIMISED, "legs_dplr")
    ]
    first = models[0]
    for other in models[1:]:
        assert torch.equal(first.encoder.weight, other.encoder.weight)
        assert torch.equal(first.blocks[0].mix.weight, other.blocks[0].mix.weight)
        assert torch.equal(first.blocks[0].layer.log_dt, other.blocks[0].layer.log_dt)


# -- data ---------------------------------------------------------------------------


def test_some_rows_of_each_part(words, images):
    few = full.load("speech_commands", rows=2, folder=words)
    assert [len(few.train), len(few.validation), len(few.test)] == [2, 2, 2]
    assert {int(y) for _, y in few.train} == {0, 1}  # evenly spaced: both words
    assert few.classes == ("no", "yes")
    assert full.some(images, 100).train is images.train
    with pytest.raises(ValueError, match="rows is 0; give a whole number"):
        full.some(images, 0)


def archive(source, path):
    with tarfile.open(path, "w:gz") as packed:
        packed.add(source, arcname=source.name)
    return path


def test_the_cache_is_unpacked_once(cifar, tmp_path, monkeypatch):
    monkeypatch.setenv("COLLECTION_CACHE", str(tmp_path))
    asked = []

    def download(url, name, sha256):
        asked.append((name, len(sha256)))
        return archive(cifar, tmp_path / name)

    monkeypatch.setattr(full, "download", download)
    for _ in range(2):
        splits = full.load("cifar", validation=8)
        assert len(splits.train) == 32
        assert splits.test[0][0].shape == (1024, 3)
    assert asked == [("cifar-10-python.tar.gz", 64)]
    assert not list(tmp_path.glob(".*.part"))


def test_a_broken_archive_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLECTION_CACHE", str(tmp_path))

    def download(url, name, sha256):
        (tmp_path / name).write_bytes(b"nothing")
        return tmp_path / name

    monkeypatch.setattr(full, "download", download)
    with pytest.raises(CacheError, match=r"v0\.02\.tar\.gz could not be unpacked"):
        full.load("speech_commands")
    assert not (tmp_path / "speech_commands_v0.02").exists()


def test_missing_data_are_said(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLECTION_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="data_batch_1 is not in the folder"):
        full.load("cifar", folder=tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="Speech Commands"):
        full.load("speech_commands", folder=tmp_path / "none")
    monkeypatch.setitem(
        full.ARCHIVES, "cifar", ("file:///nowhere/cifar-10.tar.gz", "0" * 64, "x")
    )
    with pytest.raises(CacheError, match="could not be fetched from file"):
        full.full_run("cifar", "lin", 0, **TINY)


WRONG = {
    "task": (("cifra", "lin", 0), {}, "The task is 'cifra'.* Did you mean cifar"),
    "kind": (("cifar", "lim", 0), {}, "The initialisation is 'lim'"),
    "seed": (("cifar", "lin", -1), {}, "seed is -1; give a whole number"),
    "epochs": (("cifar", "lin", 0), {"epochs": 0}, "epochs is 0; give a whole"),
    "width": (("cifar", "lin", 0), {"width": 2.5}, "width is 2.5; give a whole"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_words_are_said(name, images):
    run, changes, sentence = WRONG[name]
    with pytest.raises(ValueError, match=sentence):
        full.full_run(*run, data=images, **changes)
    task, kind, seed = run
    if name != "seed":
        with pytest.raises(ValueError, match=sentence):
            full.full_table([task], ["legs", kind], [seed], **changes)


def test_a_split_without_validation(images):
    data = Splits(images.train, Images([], [], True, 0, 1), images.test, images.classes)
    row = full.full_run("cifar", "lin", 0, data=data, **{**TINY, "epochs": 1})
    assert math.isnan(row["validation"])
    assert 0 <= row["accuracy"] <= 1

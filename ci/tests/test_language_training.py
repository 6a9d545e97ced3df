"""lib.language: training, files with cards, and the command line."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch

from lib.kit.start import ROOT
from lib.language import (
    Recipe,
    Sizes,
    Transformer,
    load_model,
    losses,
    rounded,
    save_model,
    shipping,
    train,
    training,
)
from lib.language.command import main

V = 16
TEXT = torch.tensor([1, 5, 2, 7, 3, 3, 9, 4] * 60)
TINY = Recipe(steps=6, batch=2, length=12, lr=1e-2, warmup=2)

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(seed: int = 0, **sizes) -> Transformer:
    sizes = dict(vocab=V, d=16, layers=3, heads=2, max_len=32) | sizes
    return Transformer(Sizes(**sizes), seed)


def recipe(**changed) -> Recipe:
    return Recipe(**{**TINY.__dict__, **changed})


# -- the loop -------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
def test_training_lowers_the_loss_at_every_exit(optimiser):
    model = tiny()
    before = losses(model, TEXT, 12)
    history = train(model, TEXT, recipe(steps=40, optimiser=optimiser), held_out=TEXT)
    assert all(b < a - 0.5 for a, b in zip(before, losses(model, TEXT, 12)))
    assert len(history["loss"]) == len(history["cpu"]) == 40
    assert history["cpu"] == sorted(history["cpu"])
    assert [step for step, _ in history["held_out"]] == [40]
    assert len(history["held_out"][0][1]) == 3


def test_one_small_gradient_step_lowers_the_loss():
    model, tokens = tiny(), TEXT[:39].view(3, 13)
    before = training.step_loss(model, tokens, TINY, 0)
    before.backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 1e-3 * p.grad / p.grad.norm()
    assert training.step_loss(model, tokens, TINY, 0) < before


class Killed(Exception):
    pass


@pytest.mark.parametrize("distilled", [False, True])
def test_a_run_that_was_killed_ends_with_the_same_bits(tmp_path, distilled):
    teacher = tiny(7, d=24).eval() if distilled else None
    whole, broken = tiny(), tiny()
    first = train(whole, TEXT, TINY, teacher=teacher)
    path = tmp_path / "state.pt"

    def kill(step, steps, loss):
        if step == 5:
            raise Killed

    options = dict(teacher=teacher, checkpoint=path, every=2)
    with pytest.raises(Killed):
        train(broken, TEXT, TINY, on_step=kill, **options)
    again = tiny(3)  # whatever it starts with is replaced
    second = train(again, TEXT, TINY, **options)
    assert first["loss"] == second["loss"]
    for a, b in zip(whole.parameters(), again.parameters()):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match=r"belongs to another run: lr was 0.01"):
        train(tiny(), TEXT, recipe(lr=0.02), **options)


def test_a_draft_learns_the_teachers_law():
    teacher = tiny(1)
    train(teacher, TEXT, recipe(steps=30))
    teacher.eval()
    tokens = TEXT[:64].view(4, 16)

    @torch.no_grad()
    def distance(draft):
        law = torch.softmax(teacher(tokens), -1)
        return float((torch.softmax(draft(tokens), -1) - law).abs().sum(-1).mean()) / 2

    draft = tiny(2, layers=1)
    before = distance(draft)
    train(draft, TEXT, recipe(steps=40, exits=0, drop=0.0), teacher=teacher)
    assert distance(draft) < before / 2


# -- its parts ------------------------------------------------------------------------


def test_the_loss_is_the_last_layers_plus_weighted_exits():
    model, tokens = tiny().double(), TEXT[:26].view(2, 13)
    plain = recipe(drop=0.0)
    streams = model.streams(tokens[:, :-1])
    ce = [
        -torch.log_softmax(model.read(x), -1).gather(2, tokens[:, 1:, None]).mean()
        for x in streams
    ]
    expected = ce[2] + 0.3 * (1 / 3 * ce[0] + 2 / 3 * ce[1])
    found = training.step_loss(model, tokens, plain, 4)
    assert found.item() == pytest.approx(expected.item(), abs=1e-12)
    alone = training.step_loss(model, tokens, recipe(drop=0.0, exits=0), 4)
    assert alone.item() == pytest.approx(ce[2].item(), abs=1e-12)


def test_a_law_as_aim_is_cross_entropy_with_it():
    logits, law = torch.randn(2, 3, V).double(), torch.rand(2, 3, V).double()
    law /= law.sum(-1, keepdim=True)
    direct = -(law * torch.log_softmax(logits, -1)).sum(-1).mean()
    found = training.token_loss(logits, torch.zeros(2, 3).long(), law)
    assert found.item() == pytest.approx(direct.item(), abs=1e-12)


def test_layers_are_left_out_more_often_the_later_they_are():
    model = tiny(layers=4)
    kept = training.kept(model, 20_000, recipe(drop=0.4), 3).double()
    expected = [1 - 0.4 * (math.exp(k * math.log(2) / 3) - 1) for k in range(4)]
    assert kept.mean(1).tolist() == pytest.approx(expected, abs=0.015)
    assert bool((kept[0] == 1).all())
    assert training.kept(model, 5, recipe(drop=0.0), 3) is None
    again = training.kept(model, 20_000, recipe(drop=0.4), 3).double()
    assert torch.equal(kept, again)


def test_every_early_exit_takes_its_turn():
    model = tiny(layers=5)
    seen = [training.exits(model, TINY, step) for step in range(60)]
    assert {number for pair in seen for number in pair} == {1, 2, 3, 4}
    assert all(len(set(pair)) == 2 for pair in seen)
    assert training.exits(tiny(layers=1), TINY, 0) == []


def test_the_rate_warms_up_and_falls_to_its_floor():
    made = Recipe(steps=100, warmup=10)
    rates = [training.schedule(step, made) for step in range(101)]
    assert rates[:10] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert rates[10] == 1
    assert rates[55] == pytest.approx((1 + 0.03) / 2)
    assert rates[100] == pytest.approx(0.03)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_held_out_losses_are_those_of_every_exit():
    model, text = tiny().double(), TEXT[:60]
    rows = text[:52].view(4, 13)
    expected = [
        training.token_loss(model.read(x), rows[:, 1:]).item()
        for x in model.streams(rows[:, :-1])
    ]
    assert losses(model, text, 12, batch=3) == pytest.approx(expected, abs=1e-12)


def test_muon_steps_matrices_and_adamw_the_rest():
    model = tiny()
    parts = training.Both(model, TINY).parts
    shapes = [
        [p.shape for g in part.param_groups for p in g["params"]] for part in parts
    ]
    assert len(shapes[0]) == 1 + 2 * 3 + 1  # embedding and norms
    assert len(shapes[1]) == 4 * 3
    assert len(training.Both(model, recipe(optimiser="adamw")).parts) == 1


def test_autocast_is_close_and_a_step_works():
    model, tokens = tiny(), TEXT[:26].view(2, 13)
    low = training.step_loss(model, tokens, recipe(bf16=True), 1)
    full = training.step_loss(model, tokens, TINY, 1)
    assert low.item() == pytest.approx(full.item(), rel=0.02)
    assert low != full
    low.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"clip": -1.0}, "clip is -1.0"),
        ({"drop": 1.0}, "drop is 1.0"),
        ({"floor": 2.0}, "floor is 2.0"),
        ({"optimiser": "mun"}, "Did you mean muon"),
    ],
)
def test_recipes_that_make_no_sense(changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        recipe(**changed)


def test_texts_and_teachers_that_do_not_fit():
    with pytest.raises(ValueError, match="a window takes 13"):
        train(tiny(), TEXT[:9], TINY)
    with pytest.raises(ValueError, match="exceed the context of 32"):
        train(tiny(), TEXT, recipe(length=40))
    with pytest.raises(ValueError, match="token 9 of 8"):
        train(tiny(vocab=8), TEXT, TINY)
    with pytest.raises(ValueError, match="they need the same tokenizer"):
        train(tiny(), TEXT, TINY, teacher=tiny(vocab=20))
    with pytest.raises(ValueError, match="length is 500"):
        losses(tiny(), TEXT[:100], 500)


# -- files ----------------------------------------------------------------------------


def test_the_rounded_weights_are_the_model(tmp_path):
    model, text = tiny(), TEXT[:24].view(2, 12)
    path = tmp_path / "m.safetensors"
    save_model(path, model, {"what": "a test"})
    loaded, card = load_model(path)
    assert (card["what"], card["licence"]) == ("a test", "Apache-2.0")
    assert loaded.sizes == model.sizes
    assert not torch.equal(loaded(text), model(text))
    assert torch.equal(loaded(text), rounded(model)(text))
    save_model(tmp_path / "n.safetensors", model, {"what": "a test"})
    assert path.read_bytes() == (tmp_path / "n.safetensors").read_bytes()
    double, _ = load_model(path, torch.float64)
    assert double(text).dtype == torch.float64
    assert float((double(text) - loaded(text)).abs().max()) < 1e-4


def test_files_that_are_no_models(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"a.safetensors cannot be read"):
        load_model(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"no file .*b.safetensors; give a language"):
        load_model(tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"does not end in .safetensors"):
        save_model(tmp_path / "a.npz", tiny(), {})
    model = tiny()
    with torch.no_grad():
        model.norm.weight[0] = torch.nan
    with pytest.raises(ValueError, match=r"norm.weight are not finite"):
        save_model(tmp_path / "c.safetensors", model, {})
    wrong = Sizes(vocab=V, d=16, layers=2, heads=2, max_len=32)
    model = tiny()
    model.sizes = wrong
    save_model(tmp_path / "d.safetensors", model, {})
    with pytest.raises(ValueError, match=r"d.safetensors does not fit its card"):
        load_model(tmp_path / "d.safetensors")
    save_model(tmp_path / "e.safetensors", tiny(), {"sizes": {"d": 16, "heads": 3}})
    with pytest.raises(ValueError, match=r"its sizes are \{'d': 16, 'heads': 3\}"):
        load_model(tmp_path / "e.safetensors")


# -- the command line -----------------------------------------------------------------


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(f"Line {k} of a book. " * 60 for k in range(60)))
    return path


def words(book, out, *more: str) -> list[str]:
    sizes = [
        "--d",
        "16",
        "--layers",
        "2",
        "--heads",
        "2",
        "--max-len",
        "64",
        "--tokenizer",
        "bytes",
    ]
    steps = ["--steps", "3", "--batch", "2", "--length", "16", "--warmup", "1"]
    return ["train", "--corpus", str(book), "--out", str(out), *sizes, *steps, *more]


def test_a_target_and_a_draft_are_trained_by_one_command_each(book, tmp_path, capsys):
    target, draft = tmp_path / "t.safetensors", tmp_path / "d.safetensors"
    main(words(book, target))
    model, card = load_model(target)
    assert model.sizes.vocab == 256
    assert card["steps"] == 3
    assert card["command"].startswith("python -m lib.language train --corpus")
    assert card["held_out_by_exit"][-1] == pytest.approx(
        card["learning_curve"][-1][1], abs=0.05
    )
    main(words(book, draft, "--teacher", str(target), "--layers", "1", "--exits", "0"))
    assert "distilled" in load_model(draft)[1]["what"]
    told = capsys.readouterr().err
    assert "wrote" in told
    assert "held-out loss" in told
    data = target.read_bytes()
    main(words(book, target))  # its checkpoint is complete: the same file again
    assert "going on from t.checkpoint" in capsys.readouterr().err
    assert len(target.read_bytes()) == len(data)


def test_the_page_and_the_manifest_name_what_is_there(book, tmp_path):
    (tmp_path / "language").mkdir()
    (tmp_path / "manifest.json").write_text("{}")
    out = tmp_path / "language" / "target.safetensors"
    main(words(book, out))
    out.with_suffix(".checkpoint").unlink()
    main(["enter", "--folder", str(tmp_path)])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["language/target.safetensors"]["size"] == out.stat().st_size
    assert "lib.language train" in manifest["language/target.safetensors"]["source"]
    page = (tmp_path / "language" / "README.md").read_text()
    assert "## target.safetensors" in page
    assert "cpu_seconds" in page
    assert shipping.page({}).startswith("# Language models")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--corpus", "pyton"], "train: There is no corpus"),
        (["--out", "a.npz"], "end it in .safetensors"),
        (["--optimiser", "sgd"], "choose one of muon, adamw"),
        (["--tokenizer", "no.json"], "cannot be read as a tokenizer"),
        (["--teacher", "no.safetensors"], "There is no file no.safetensors; give a"),
        (["--threads", "0"], "give at least 1"),
        (["--length", "100"], "exceed the context of 64"),
    ],
)
def test_a_mistake_on_the_command_line_is_a_sentence(book, tmp_path, more, sentence):
    with pytest.raises(SystemExit, match=sentence):
        main(words(book, tmp_path / "t.safetensors", *more))


def test_a_teacher_of_another_tokenizer_is_refused(book, tmp_path):
    target = tmp_path / "t.safetensors"
    save_model(target, tiny(vocab=256), {"tokenizer": "256-other"})
    with pytest.raises(SystemExit, match="trained with another tokenizer"):
        main(words(book, tmp_path / "d.safetensors", "--teacher", str(target)))


def test_help_is_quick_and_names_the_options():
    done = subprocess.run(
        [sys.executable, "-m", "lib.language", "train", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert "--exit-weight" in done.stdout
    assert "--teacher" in done.stdout

"""The miniature's training: its pairs, its batches, its attention and losses, and that it goes on to the bit."""

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_model import spoken

from fz import mini
from fz.attention import MAP_STRIDE, Plain
from fz.errors import FzError
from fz.frames import FrameIndex
from fz.mini import attend, average, shards, state, training
from fz.mini.attend import TrainingAttention
from fz.mini.data import HELD_OUT
from fz.mini.folder import draw_log, export
from fz.mini.shape import UNET, VAE_JSON
from fz.mini.stage import Stage
from fz.mini.training import Batch, Start, batch_of, choose, losses, new_text_model, placing_loss
from fz.mini.words import new_tokenizer
from fz.mini.world import caption, render
from fz.model.layers import TextContext
from fz.model.unet import UNet, UNetConfig
from fz.model.vae import VAE, VAEConfig
from fz.prompts.text import TextEncoder
from fz.weights.load import load_checkpoint

SMALL = {**UNET, "block_out_channels": [16, 16, 16, 16], "norm_num_groups": 4}
needs_data = pytest.mark.skipif(not (mini.FOLDER / "unet").is_dir(), reason="weights/mini has no checkpoint yet")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return new_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def few(monkeypatch):
    """Shards of three pairs."""
    for module in (shards, training):
        monkeypatch.setattr(module, "PAIRS", 3)


class Averages(torch.nn.Module):
    """In the VAE's place: averages of 4 x 4 pixels, four channels."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def encode(self, x):
        small = torch.nn.functional.avg_pool2d(x, 4)
        return self.scale * torch.cat([small, small.mean(1, keepdim=True)], 1)


def start(tokenizer):
    torch.manual_seed(1)
    text = new_text_model(len(tokenizer), tokenizer.start, tokenizer.end)
    return Start(UNet(UNetConfig.from_json(SMALL)), Averages(), TextEncoder(tokenizer, text))


# ---- data ------------------------------------------------------------------------------------------------------------


def test_a_pair_differs_in_one_word_or_in_whose_it_is_or_in_that_nothing_is_there():
    found, two = set(), 0
    for seed in range(300):
        a, b = shards.pair_of(seed)
        two += max(len(a.things), len(b.things)) == 2
        if not (a.things and b.things):
            assert (a.scene, a.style, a.seed) == (b.scene, b.style, b.seed) and a.things != b.things
            found.add("nothing there")
            continue
        differing = [name for name in ("scene", "style") if getattr(a, name) != getattr(b, name)]
        for x, y in zip(a.things, b.things, strict=True):
            assert dataclasses.replace(x, kind=y.kind, colour=y.colour) == y
            differing += [name for name in ("kind", "colour") if getattr(x, name) != getattr(y, name)]
        assert caption(a) != caption(b)
        if len(differing) == 2:  # both things have what the other one had
            name = differing.pop()
            assert [getattr(t, name) for t in a.things] == [getattr(t, name) for t in b.things[::-1]]
            differing = ["swap"] if differing == [name] else []
        (change,) = differing
        found.add(change)
        for story in (a, b):
            assert len({t.kind for t in story.things}) == len({t.colour for t in story.things}) == len(story.things)
    assert found == set(shards.CHANGES)
    assert 120 < two < 180
    assert shards.pair_of(5) == shards.pair_of(5)


def test_no_pair_is_held_out():
    with pytest.raises(ValueError, match="held out"):
        shards.pair_of(HELD_OUT)


def test_places_are_where_things_are_and_words_are_theirs(tokenizer):
    seed = next(seed for seed in range(100) if len(shards.pair_of(seed)[0].things) == 2)
    story, times = shards.pair_of(seed)[0], shards.moments(seed)
    pictures, cells = shards.draw_pair(seed)
    assert list(times) == sorted(times) and pictures.shape == (2, 4, 3, 128, 128)
    for i, t in enumerate(times):
        picture, masks = render(story, float(t), 128)
        assert (pictures[0, i].transpose(1, 2, 0) == picture).all()
        for j, mask in enumerate(masks):
            assert cells[0, i, j].mean() == pytest.approx(mask.mean(), abs=1e-3)
            y, x = divmod(int(cells[0, i, j].argmax()), 8)
            assert mask[16 * y : 16 * y + 16, 16 * x : 16 * x + 16].mean() == pytest.approx(
                cells[0, i, j].max(), abs=1e-3
            )
    ids, columns = shards.told(TextEncoder(tokenizer, None), story)
    for variant, said in enumerate(shards.variants(caption(story))):
        assert spoken(tokenizer, ids[variant].tolist()) == said
        for j, thing in enumerate(story.things):
            named = spoken(tokenizer, ids[variant][columns[variant, j]].tolist())
            assert named.split() == [thing.colour, thing.kind]


def test_a_shard_is_made_once_and_is_the_same_by_two_processes(tmp_path, tokenizer, few):
    vae, encoder = Averages(), TextEncoder(tokenizer, None)
    first = shards.Shards(tmp_path, vae, encoder, (64, 128)).of(64, 2)
    assert first[1].latents.shape == (3, 2, 4, 4, 16, 16) and first[1].ids.shape == (3, 2, 2, 77)
    assert first[1].columns.shape == (3, 2, 2, 2, 77) and first[1].cells.shape == (3, 2, 4, 2, 8, 8)
    pictures, _ = shards.draw_pair(4)  # the second of shard 1
    large = shards.Shards(tmp_path, None, None, (64, 128)).of(128, 2)[1]  # from the file: there is no VAE to make it
    torch.testing.assert_close(
        large.latents[1], shards.encoded(vae, torch.from_numpy(pictures).flatten(0, 1), 128).unflatten(0, (2, 4))
    )
    with shards.drawing(2) as each:
        (tmp_path / "other").mkdir()
        again = shards.Shards(tmp_path / "other", vae, encoder, (64,), each).of(64, 2)
    assert all(torch.equal(a, b) for a, b in zip(vars(first[1]).values(), vars(again[1]).values(), strict=True))


def test_batches_are_pairs_of_pictures_or_of_clips_in_order(few):
    n = 3
    moment = torch.arange(4).view(1, 1, 4, 1, 1, 1).expand(n, 2, 4, 4, 16, 16)
    number = torch.arange(2 * n).view(n, 2, 1, 1, 1, 1)
    latents = (10 * number + moment).half()
    ids = torch.arange(4 * n).view(n, 2, 2, 1).expand(n, 2, 2, 77)
    columns = torch.ones(n, 2, 2, 2, 77, dtype=torch.bool)
    made = shards.Shard(latents, ids, columns, torch.rand(n, 2, 4, 2, 8, 8).half())
    torch.manual_seed(0)
    lengths, empty, short = [], [], []
    for _ in range(200):
        batch = batch_of([made], choose([made], 16), torch.full((77,), -1))
        stories, times = batch.latents[:, :, 0, 0, 0].int() // 10, batch.latents[:, :, 0, 0, 0].int() % 10
        count, frames = times.shape
        assert count % 2 == 0 and 12 <= count * frames <= 16
        assert (times[0::2] == times[1::2]).all() and (times.diff(dim=1) > 0).all()
        assert (stories[0::2] + 1 == stories[1::2]).all() and (stories == stories[:, :1]).all()
        assert batch.cells.shape == (count, frames, 2, 16)
        assert torch.equal(batch.told[0::2], batch.told[1::2])
        assert (batch.ids[~batch.told] == -1).all()
        said = batch.ids[batch.told, 0]
        assert torch.equal(said // 2, stories[batch.told, 0])
        lengths.append(frames)
        empty.append((~batch.told).float().mean())
        short += (said % 2).tolist()
    assert {1, 2, 3, 4} == set(lengths) and 70 < sum(f > 1 for f in lengths) < 130
    assert torch.tensor(empty).mean() == pytest.approx(training.EMPTY, abs=0.04)
    assert torch.tensor(short).float().mean() == pytest.approx(training.SHORT, abs=0.05)


def test_a_batch_of_layouts_has_two_things_and_much_noise(few, monkeypatch):
    columns = torch.ones(4, 2, 2, 2, 77, dtype=torch.bool)
    columns[1, 0, :, 1] = columns[3, :, :, 1] = False  # one thing in one or both of the captions
    latents = torch.arange(4).view(4, 1, 1, 1, 1, 1).expand(4, 2, 4, 4, 16, 16).half()
    made = shards.Shard(latents, torch.zeros(4, 2, 2, 77, dtype=torch.long), columns, torch.rand(4, 2, 4, 2, 8, 8))
    monkeypatch.setattr(training, "PAIRS", 4)
    torch.manual_seed(0)
    seen = {lesson: set() for lesson in (training.ALL, training.LAYOUT)}
    for lesson in 20 * list(seen):
        batch = batch_of([made], choose([made], 16, lesson), torch.zeros(77, dtype=torch.long))
        seen[lesson] |= {(int(z[0, 0, 0, 0]), len(z)) for z in batch.latents}
    pairs, frames = ({lesson: {x[i] for x in there} for lesson, there in seen.items()} for i in (0, 1))
    assert pairs == {training.ALL: {0, 1, 2, 3}, training.LAYOUT: {0, 2}}
    assert frames == {training.ALL: {1, 2, 3, 4}, training.LAYOUT: {1}}
    times = torch.cat([training.Noised.of(torch.zeros(200, 1, 4, 2, 2), torch.rand(1000), lesson).t for lesson in seen])
    assert times[:200].min() < 100 and 600 <= times[200:].min() < 630 and times.max() > 950


@pytest.mark.parametrize("layouts, lessons", [(0.0, {"ALL"}), (1.0, {"LAYOUT"}), (0.5, {"ALL", "LAYOUT"})])
def test_so_many_batches_teach_layouts(layouts, lessons, tmp_path, tokenizer, few, monkeypatch):
    asked, choose = [], training.choose

    def noted(shards, pictures, lesson):
        asked.append(lesson)
        return choose(shards, pictures, lesson)

    monkeypatch.setattr(training, "choose", noted)
    monkeypatch.setattr(training, "BATCHES", {64: 8, 128: 8})
    steps = 6 if len(lessons) == 2 else 2
    training.train(tmp_path, start(tokenizer), "cpu", lambda training: training.steps < steps, layouts=layouts)
    assert set(asked) == {getattr(training, lesson) for lesson in lessons}


# ---- attention and losses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 3])
def test_attention_in_training_is_the_editor_s(frames):
    torch.manual_seed(0)
    unet = UNet(UNetConfig.from_json(SMALL | {"block_out_channels": [8, 16, 24, 16]}))
    z, text = torch.randn(2, frames, 4, 16, 16), torch.randn(2, 77, 128)
    attending = TrainingAttention(FrameIndex((0, "mid")))
    with torch.no_grad():
        ours = unet(z, 7, TextContext(text), attending)
        theirs = unet(z, 7, TextContext(text), Plain(FrameIndex((0, "mid"))))
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    mapped = [s for s in unet.sites() if s.kind == "cross" and s.stride == MAP_STRIDE]
    assert len(attending.maps) == len(mapped) == 5
    assert all(m.shape == (2, frames, 16, 77) for m in attending.maps)
    torch.testing.assert_close(attending.maps[0].sum(-1), torch.ones(2, frames, 16))


@pytest.mark.parametrize("together", [1, 3, 5, 7])
def test_attention_by_maps_has_the_gradients_of_attention(monkeypatch, together):
    torch.manual_seed(0)
    monkeypatch.setattr(attend, "CACHED", together * 6 * 4)
    q, k, v = (torch.randn(5, n, 3, dtype=torch.float64, requires_grad=True) for n in (6, 4, 4))
    plain = torch.softmax(q @ k.mT * 3**-0.5, -1) @ v
    torch.testing.assert_close(attend.AttentionByMaps.apply(q, k, v), plain)
    assert torch.autograd.gradcheck(attend.AttentionByMaps.apply, (q, k, v))


@pytest.mark.parametrize("dtype, ours", [(torch.bfloat16, "AttentionByMaps"), (torch.float32, "Slice")])
def test_only_bfloat16_on_a_cpu_attends_by_maps(dtype, ours):
    q, k, v = (torch.randn(2, 2, 1, n, 8, requires_grad=True).to(dtype) for n in (16, 32, 32))
    out = attend.attended(q, k, v)
    assert out.dtype == dtype and out.shape == (2, 2, 1, 16, 8)
    assert ours in repr(out.grad_fn.next_functions) + repr(out.grad_fn)
    plain = torch.softmax(q.float() @ k.float().mT * 8**-0.5, -1) @ v.float()
    torch.testing.assert_close(out.float(), plain, atol=3e-2 if dtype == torch.bfloat16 else 1e-5, rtol=2e-2)


def test_the_loss_of_places_is_least_for_attention_on_the_thing():
    # the first thing is in cell 1, named by token 2; there is no second
    cells, columns = torch.zeros(1, 1, 2, 4), torch.zeros(1, 2, 3, dtype=torch.bool)
    cells[0, 0, 0, 1], columns[0, 0, 2] = 1, True

    def loss(attention, told=True):
        maps = torch.full((1, 1, 4, 3), 0.1)
        maps[0, 0, :, 2] = torch.tensor(attention)
        return float(placing_loss([maps, maps], cells, columns, torch.tensor([told])))

    assert loss([0.0, 0.5, 0.0, 0.0]) == pytest.approx(0, abs=1e-5)
    assert loss([0.2, 0.2, 0.2, 0.2]) == pytest.approx(1.3863, abs=1e-4)
    assert loss([0.5, 0.1, 0.1, 0.1]) > loss([0.1, 0.5, 0.1, 0.1])
    assert loss([0.5, 0.1, 0.1, 0.1], told=False) == 0


def test_a_pair_has_one_timestep_and_one_noise(tokenizer):
    seen = {}

    class Unet(torch.nn.Module):
        def forward(self, z, t, text, attend):
            seen.update(z=z, t=t)
            attend.maps.append(torch.rand(4, 2, 16, 77))
            return torch.zeros_like(z)

    begun = start(tokenizer)
    alone = torch.randn(2, 2, 4, 16, 16)
    batch = Batch(
        alone.repeat_interleave(2, 0),
        torch.zeros(4, 77, dtype=torch.long),
        torch.ones(4, 2, 77, dtype=torch.bool),
        torch.rand(4, 2, 2, 16),
        torch.ones(4, dtype=torch.bool),
    )
    losses(Unet(), begun.text.model, batch, torch.linspace(0.999, 0.001, 1000))
    assert torch.equal(seen["t"][0::2], seen["t"][1::2]) and seen["t"][0] != seen["t"][2]
    assert torch.equal(seen["z"][0::2], seen["z"][1::2]) and not torch.equal(seen["z"][0], seen["z"][2])


@pytest.mark.parametrize(
    "lesson, snr, weight",
    [("ALL", 50, 0.1), ("ALL", 5, 1), ("ALL", 1, 5), ("ALL", 0.625, 8), ("ALL", 0.01, 8),
     ("LAYOUT", 0.2, 3), ("LAYOUT", 0.01, 60), ("LAYOUT", 0.005, 100)],
)  # fmt: skip
def test_steps_that_see_little_weigh_most(lesson, snr, weight):
    alpha_bar = torch.full((1000,), snr / (1 + snr))
    noised = training.Noised.of(torch.zeros(2, 1, 4, 4, 4), alpha_bar, getattr(training, lesson))
    assert noised.weight.flatten().tolist() == pytest.approx([weight] * 2)
    assert noised.error(noised.eps + 2).item() == pytest.approx(4 * weight, rel=1e-5)


# ---- state -----------------------------------------------------------------------------------------------------------


def test_training_goes_on_to_the_bit_and_is_exported(tmp_path, tokenizer, few, monkeypatch):
    monkeypatch.setattr(training, "NEW_SHARD", 20)
    monkeypatch.setattr(training, "BATCHES", {64: 8, 128: 8})
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    folders = [tmp_path / name for name in ("whole", "parts")]
    for folder in folders:
        folder.mkdir()

    def run(folder, steps):
        return training.train(folder, start(tokenizer), "cpu", lambda training: training.steps < steps)

    whole = run(folders[0], 4)
    run(folders[1], 2)
    parts = run(folders[1], 4)
    assert parts.steps == whole.steps == 4 and parts.pictures == whole.pictures > 20
    assert (folders[0] / "shard-64-0001.pt").exists()
    for a, b in ((whole.modules.state_dict(), parts.modules.state_dict()), (whole.shadow, parts.shadow)):
        assert all(torch.equal(a[key], b[key]) for key in a)
    first = start(tokenizer).unet.state_dict()["conv_in.weight"]
    assert not torch.equal(whole.modules.state_dict()["unet.conv_in.weight"], first)
    # the log
    lines = (folders[1] / "log.csv").read_text().splitlines()
    assert lines[0] == "step,seconds,pictures,size,loss,placing" and len(lines) == 5
    assert int(lines[-1].split(",")[2]) == whole.pictures
    draw_log(folders[1] / "log.csv", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 500


def test_averages_are_in_small_files_and_a_training_may_start_from_them(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "LARGEST", 100_000 + 2 * 700)
    torch.manual_seed(0)
    first = state.Training(tmp_path, {"layer": torch.nn.Linear(20, 30), "more": torch.nn.Linear(10, 10)})
    first.shadow = {key: torch.randn_like(value) for key, value in first.shadow.items()}
    first.save()
    files = sorted(tmp_path.glob("averages-*"))
    assert len(files) == 2 and all(file.stat().st_size <= state.LARGEST for file in files)
    assert all(value.dtype == torch.float16 for file in files for value in load_file(file).values())
    (tmp_path / "training.pt").unlink()
    again = state.Training(tmp_path, {"layer": torch.nn.Linear(20, 30), "more": torch.nn.Linear(10, 10)})
    assert again.steps == 0
    for key, value in again.modules.state_dict().items():
        assert torch.equal(value, first.shadow[key].half().float())


def test_the_rate_rises_then_stays_and_averages_follow(tmp_path):
    layer = torch.nn.Linear(2, 1)
    training = state.Training(tmp_path, {"layer": layer})
    rates = []
    for _ in range(state.WARM_UP + 5):
        training.step(layer(torch.ones(4, 2)).square().mean())
        rates.append(training.optimiser.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(state.RATE / state.WARM_UP) and rates[-5:] == [state.RATE] * 5
    now, average = layer.weight.detach(), training.shadow["layer.weight"]
    assert not torch.equal(now, average) and (now - average).abs().max() < 0.05


def test_a_training_goes_on_where_modules_are_listed_in_another_order(tmp_path):
    """As after a change of the code: moments belong to parameters by name."""

    def modules(order):
        torch.manual_seed(0)
        made = {name: torch.nn.Linear(width, width) for name, width in (("a", 2), ("b", 3))}
        return {name: made[name] for name in order}

    def step(training):
        a, b = training.modules["a"], training.modules["b"]
        training.step(a(torch.ones(4, 2)).square().mean() + b(torch.ones(4, 3)).square().mean())

    first = state.Training(tmp_path, modules("ab"))
    step(first)
    first.save()
    other = state.Training(tmp_path, modules("ba"))
    for each in (first, other):
        step(each)
    assert list(first.modules.state_dict()) != list(other.modules.state_dict())
    for key, value in first.modules.state_dict().items():
        assert torch.equal(value, other.modules.state_dict()[key])


def test_trainings_in_several_folders_become_their_mean_and_go_on_with_other_pictures(tmp_path, capsys):
    folders = [tmp_path / name for name in "abc"]

    def going(folder):
        return state.Training(folder, {"layer": torch.nn.Linear(3, 2)})

    def step(training):
        training.step(training.modules["layer"](torch.randn(4, 3)).square().mean())
        training.pictures += 4

    folders[0].mkdir()
    first = going(folders[0])
    step(first)
    first.save()
    (folders[0] / "shard-64-0000.pt").write_bytes(b"drawn")
    assert (
        average.main([*map(str, folders[:2]), str(folders[0])]) == 0 and "pictures seen: 4" in capsys.readouterr().out
    )
    for folder in folders[:2]:
        training = going(folder)
        step(training)
        training.save()
    a, b = (torch.load(folder / "training.pt", weights_only=True) for folder in folders[:2])
    assert not torch.equal(a["modules"]["layer.weight"], b["modules"]["layer.weight"]), "other pictures"
    assert average.main(map(str, folders)) == 0 and "pictures seen: 8, 8" in capsys.readouterr().out
    for folder, own in zip(folders, (a, b, a), strict=True):
        now = torch.load(folder / "training.pt", weights_only=True)
        for part in ("modules", "shadow"):
            torch.testing.assert_close(now[part]["layer.bias"], (a[part]["layer.bias"] + b[part]["layer.bias"]) / 2)
        for moment in ("exp_avg", "exp_avg_sq", "step"):
            mean = (a["optimiser"]["state"][0][moment] + b["optimiser"]["state"][0][moment]) / 2
            torch.testing.assert_close(now["optimiser"]["state"][0][moment], mean)
        assert now["steps"] == 2 and torch.equal(now["random"], own["random"]) == (folder is not folders[2])
        assert (folder / "shard-64-0000.pt").read_bytes() == b"drawn"
        averaged = state.read_averages(folder)["layer.weight"]
        torch.testing.assert_close(averaged, now["shadow"]["layer.weight"].half().float())


def test_a_training_that_has_not_begun_has_no_moments(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder, steps in zip(folders, (0, 1), strict=True):
        folder.mkdir()
        training = state.Training(folder, {"layer": torch.nn.Linear(3, 2)})
        for _ in range(steps):
            training.step(training.modules["layer"](torch.ones(1, 3)).sum())
        training.save()
    moments = torch.load(folders[1] / "training.pt", weights_only=True)["optimiser"]["state"]
    state.average(folders)
    for folder in folders:
        now = torch.load(folder / "training.pt", weights_only=True)["optimiser"]["state"]
        assert torch.equal(now[0]["exp_avg"], moments[0]["exp_avg"])


def test_trainings_of_different_models_have_no_mean(tmp_path, capsys):
    folders = [str(tmp_path / name) for name in "ab"]
    assert average.main(folders) == 2 and "no training in" in capsys.readouterr().err
    for folder, width in zip(folders, (2, 3), strict=True):
        Path(folder).mkdir(exist_ok=True)
        state.Training(Path(folder), {"layer": torch.nn.Linear(width, 1)}).save()
    before = [(Path(folder) / "training.pt").read_bytes() for folder in folders]
    assert average.main(folders) == 2 and "different models" in capsys.readouterr().err
    assert [(Path(folder) / "training.pt").read_bytes() for folder in folders] == before


def test_a_stage_goes_on_from_its_file(tmp_path):
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 1)
    first = Stage(tmp_path, "part", {"layer": layer}, rate=0.1, minutes=0.002)
    first.run(lambda step: layer(torch.ones(4, 2)).square().mean())
    again = Stage(tmp_path, "part", {"layer": torch.nn.Linear(2, 1)}, rate=0.1, minutes=0.002)
    assert again.steps == first.steps > 0
    torch.testing.assert_close(again.modules.state_dict(), first.modules.state_dict())
    again.run(lambda step: pytest.fail("its minutes are over"))


@needs_data
def test_it_needs_neither_av_nor_diffusers():
    code = "import sys; sys.modules['av'] = sys.modules['diffusers'] = sys.modules['imageio'] = None\n"
    code += "from fz import mini; from fz.mini import training; training.start_from(mini.checkpoint()); print('there')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "there", done.stderr[-500:]


@needs_data
def test_what_ships_is_a_start_and_its_export_is_a_checkpoint(tmp_path):
    begun = training.start_from(mini.checkpoint())
    state.write_averages(tmp_path, torch.nn.ModuleDict({"unet": begun.unet, "text": begun.text.model}).state_dict())
    torch.save(begun.vae.state_dict(), tmp_path / "vae-final.pt")
    (tmp_path / "log.csv").write_text(
        "step,seconds,pictures,size,loss,placing\n1,2,32,64,0.1,2.0\n2,4,48,128,0.2,2.5\n"
    )
    assert export(tmp_path, tmp_path / "out") == "48 pictures"
    (tmp_path / "log.csv").unlink()
    assert export(tmp_path, tmp_path / "out") == "averages without a log"
    assert all(file.stat().st_size <= state.LARGEST for file in tmp_path.glob("averages-*"))
    loaded, shipped = load_checkpoint(tmp_path / "out"), load_checkpoint(mini.checkpoint())
    for part in ("unet", "vae"):
        ours, theirs = (getattr(c, part).state_dict() for c in (loaded, shipped))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    prompt = ["a red car moving on the sand"]
    assert torch.equal(torch.stack(list(loaded.text.encode(prompt))), torch.stack(list(shipped.text.encode(prompt))))
    assert json.loads((tmp_path / "out/unet/config.json").read_text())["attention_head_dim"] == [1, 4, 4, 4]


@needs_data
@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 cut short"], ids=["empty", "text", "cut"])
@pytest.mark.parametrize(
    "file, command",
    [
        ("training.pt", "train --state {}"),
        ("averages-1.safetensors", "train --state {}"),
        ("vae-final.pt", "train --start anew --state {}"),
        ("training.pt", "average {} {}/other"),
        ("averages-1.safetensors", "export --state {0} --out {0}/out"),
        ("clip.pt", "export --only clip --state {0} --out {0}/out"),
    ],
)
def test_what_is_damaged_in_a_training_s_folder_is_named(file, command, content, tmp_path, capsys):
    folder = tmp_path / "state"
    folder.mkdir()
    torch.save({}, folder / "vae-final.pt")
    (folder / file).write_bytes(content)
    name, *flags = command.format(folder, folder).split()
    assert importlib.import_module(f"fz.mini.{name}").main(flags) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"fz: state: {folder / file} is damaged") and "\n" not in said
    assert (folder / file).read_bytes() == content


def test_a_damaged_shard_is_named(tmp_path, tokenizer):
    made = shards.Shards(tmp_path, Averages(), TextEncoder(tokenizer, None), (64,))
    made.path(64, 0).write_bytes(b"half")
    with pytest.raises(FzError, match="shard-64-0000.pt is damaged"):
        made.of(64, 1)


def test_anew_needs_a_vae(tmp_path):
    with pytest.raises(FzError, match="train_vae"):
        training.start_anew(tmp_path)
    torch.save(VAE(VAEConfig.from_json(VAE_JSON)).state_dict(), tmp_path / "vae-final.pt")
    begun = training.start_anew(tmp_path)
    assert begun.text.tokens("a blue star").words[2].text == "star"
    assert not any(p.requires_grad for p in begun.vae.parameters()) and next(begun.unet.parameters()).requires_grad

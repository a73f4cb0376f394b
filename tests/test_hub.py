"""Hub names: which texts are one, what is fetched of a model, and what is said when that fails. The Hub is a server on
the loopback interface that counts its requests (hub_server.py); runs are processes of their own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import COMMIT, Hub

from fz.errors import FzError
from fz.weights import hub
from fz.weights.names import followed, hub_cache, parsed, shown
from fz.weights.needed import OF_EMBEDDING, OF_LORA, OF_VAE, choose, of_checkpoint

MINI = Path(__file__).resolve().parent.parent / "weights/mini"
# of a model on the Hub, beside what fz needs
CLUTTER = ("README.md", "model_index.json", "v1-4.ckpt", "safety_checker/model.safetensors", "unet/model.onnx",
           "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors",
           "vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/pytorch_model.bin",
           "text_encoder/flax_model.msgpack")  # fmt: skip
UNET = "unet/diffusion_pytorch_model.safetensors"


def of_mini(*parts):
    """Files of the miniature as the Hub would have them."""
    found = {}
    for part in parts:
        for file in sorted((MINI / part).rglob("*")):
            if file.is_file():
                found[file.relative_to(MINI).as_posix()] = file.read_bytes()
    return found


@pytest.fixture(scope="module")
def model():
    return of_mini("unet", "vae", "text_encoder", "scheduler", "tokenizer")


@pytest.fixture(scope="module")
def whole(model):
    return {"owner/sd": {**{name: name.encode() * 900 for name in CLUTTER}, **model}}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache, and a folder to run in."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fz(*argv, server=None, **env):
    return process("-m", "fz", *argv, server=server, **env)


def process(*argv, server=None, **env):
    """(exit code, standard output, standard error). Without a server nobody listens."""
    where = {"HF_ENDPOINT": server.url if server else "http://127.0.0.1:9", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *argv], capture_output=True, text=True, timeout=240, env=os.environ | where | env
    )
    return done.returncode, done.stdout, done.stderr


def dry_run(*flags, checkpoint="owner/sd", server=None, **env):
    """A whole command: the models are loaded, too."""
    what = ("--source", "a red car", "--target", "a blue car", "--video", str(MINI / "example"), "--size", "64")
    return fz("run", "--checkpoint", checkpoint, *what, "--cache", "none", "--dry-run", *flags, server=server, **env)


FIND = "import json, sys; from fz.shell import answered; from fz.weights.hub import models_of as m\n"
FIND += "sys.exit(answered(lambda: m(json.loads(sys.argv[1]))))"


def find(checkpoint="owner/sd", server=None, settings=None, **env):
    """What every command does before torch is imported, in a process of its own."""
    named = json.dumps({"checkpoint": checkpoint, **(settings or {})})
    return process("-c", FIND, named, server=server, **env)


def words(checkpoint="owner/sd", server=None, **env):
    """Asks for no more than the tokenizer."""
    return fz(
        "prompt", "--checkpoint", checkpoint, "--source", "a red car", "--target", "a blue car", server=server, **env
    )


def refused(done):
    """The one line."""
    code, _, said = done
    lines = said.strip().splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].startswith("fz: "), said
    return lines[0]


def in_cache(home):
    """Whole files of the snapshot, by their names."""
    folder = home / "home/hub/models--owner--sd/snapshots" / COMMIT
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


# ---- which texts are names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("CompVis/stable-diffusion-v1-4", ("CompVis/stable-diffusion-v1-4", "main")),
        ("owner/name@fp16", ("owner/name", "fp16")),
        ("owner/name@refs/pr/3", ("owner/name", "refs/pr/3")),
        ("a1.b_c/d-e.f", ("a1.b_c/d-e.f", "main")),
        ("owner/name:style.safetensors", ("owner/name", "main", "style.safetensors")),
        ("owner/name@v1:a b/style (2).pt", ("owner/name", "v1", "a b/style (2).pt")),
    ],
)
def test_names(given, name):
    found = parsed(given)
    assert (found.repo, found.revision, found.file) == (*name, None)[:3]
    assert str(found) == given


@pytest.mark.parametrize(
    "given",
    ["none", "none/", "/a/b", "./a/b", "../a", "~/a", "a/b/c", "a//b", "a/b.ckpt", "a/b.safetensors", "a/b.PT", "a b/c",
     "a/b@", "a/b@../c", "a--b/c", "a/..", "C:\\a\\b", "ckpt\\sd", "-a/b", ".a/b", "a/" + 100 * "b", "tests/absent", "",
     "é/b", "a/b\n", "a/b:", "a/b:/c", "a/b:../c.pt", "a/b.pt:c", "a/b:c:d"],  # fmt: skip
)  # fmt: skip
def test_no_names(given, root, monkeypatch):
    """tests/ is a folder here."""
    monkeypatch.chdir(root)
    assert parsed(given) is None


def test_a_path_that_is_there_is_no_name(home):
    (home / "owner/sd").mkdir(parents=True)
    assert parsed("owner/sd") is None
    assert hub.located("owner/sd", "checkpoint", of_checkpoint()) == Path("owner/sd")
    with pytest.raises(FzError, match="owner/other does not exist .*since owner is a folder here"):
        hub.located("owner/other", "checkpoint", of_checkpoint())


def test_what_people_are_told_of_a_path(home, monkeypatch):
    """Never the hash that the Hub's cache calls a file or a folder by."""
    folder = home / "hub/models--owner--sd-v1"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir()
    (folder / "blobs/0123abcd").write_bytes(b"")
    (snapshot / "style.safetensors").symlink_to(folder / "blobs/0123abcd")
    (home / "mine.safetensors").symlink_to(folder / "blobs/0123abcd")
    (home / "sd").symlink_to(snapshot)
    monkeypatch.chdir(snapshot)
    expected = {
        "owner/style:a.pt": "owner/style:a.pt",
        folder: "owner/sd-v1",
        snapshot: "owner/sd-v1",
        f"{snapshot}/": "owner/sd-v1",
        ".": "owner/sd-v1",
        "style.safetensors": "style.safetensors",
        snapshot / "style.safetensors": "style.safetensors",
        home / "mine.safetensors": "mine.safetensors",
        home / "sd": "sd",
        home / "hub" / ".." / "sd": "sd",
    }
    assert {given: shown(given) for given in expected} == expected


@pytest.mark.parametrize("flag", ["checkpoint", "vae", "tokenizer", "clip-model"])
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="measures a process by wait4")
def test_a_mistyped_path_is_answered_soon_without_a_request(flag, home):
    (home / "models").mkdir()
    with Hub({}) as server:
        argv = [
            "--video",
            str(MINI / "example"),
            "--source",
            "a car",
            "--target",
            "a bus",
            "--report",
            f"--{flag}",
            "models/sd",
        ]
        process = subprocess.Popen(
            [sys.executable, "-m", "fz.run", *argv],
            stderr=subprocess.PIPE,
            env=os.environ | {"HF_ENDPOINT": server.url},
        )
        said = process.stderr.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 2 and "models/sd does not exist" in said and len(said.splitlines()) == 1, said
    assert usage.ru_utime + usage.ru_stime < 1.5 and server.requests == []


# ---- the Hub ------------------------------------------------------------------------------------------------


def test_fresh_then_cached_then_without_a_network(home, whole, model):
    with Hub(whole) as server:
        assert find(server=server)[0] == 0
        # what is needed and nothing else, each once, weights last
        assert sorted(server.fetched()) == sorted(model) and in_cache(home) == set(model)
        assert server.fetched()[-1] == UNET and server.count("GET", "/api/") == 1
        assert len(server.requests) <= 2 * len(model) + 2
        server.requests.clear()
        assert find(server=server)[0] == 0 and server.requests == []
        assert find(server=server, HF_HUB_OFFLINE="1")[0] == 0 and server.requests == []
    # the server is gone
    code, said, error = dry_run()
    assert code == 0 and "owner/sd: diffusers folder" in said, error
    folder = home / "home/hub/models--owner--sd"
    assert followed(folder) == folder / "snapshots" / COMMIT
    assert (folder / "refs/main").read_text() == COMMIT


def test_bin_where_there_are_no_safetensors_and_one_precision(home, model):
    files = {name: content for name, content in model.items() if not name.endswith(".safetensors")}
    there = {}
    for part in ("unet", "vae", "text_encoder"):
        stem = "pytorch_model" if part == "text_encoder" else "diffusion_pytorch_model"
        there[f"{part}/{stem}.bin"] = there[f"{part}/{stem}.fp16.bin"] = stem.encode() * 600 + part.encode()
    with Hub({"owner/sd": files | there}) as server:
        assert find(server=server)[0] == 0
        assert sorted(f for f in server.fetched() if f.endswith(".bin")) == sorted(f for f in there if "fp16" not in f)


def test_only_what_another_part_does_not_replace(home, whole, model):
    vae = {name.removeprefix("vae/"): content for name, content in of_mini("vae").items()}
    clip = {name.removeprefix("tokenizer/"): content for name, content in of_mini("tokenizer").items()}
    with Hub({**whole, "owner/vae": vae, "owner/words": clip}) as server:
        assert find(server=server, settings={"vae": "owner/vae", "tokenizer": "owner/words"})[0] == 0
        assert in_cache(home) == {
            f for f in model if not f.startswith("tokenizer/") and f != "vae/diffusion_pytorch_model.safetensors"
        }


def test_the_words_of_a_prompt_need_the_tokenizer_alone(home, whole):
    with Hub(whole) as server:
        code, said, error = words(server=server)
        assert code == 0 and "car" in said, error
        assert all(f.startswith("tokenizer/") for f in server.fetched()) and server.fetched()
        # a snapshot of the tokenizer alone is no checkpoint
        server.requests.clear()
        assert "has no text_encoder/config.json" in refused(find(server=server, HF_HUB_OFFLINE="1"))
        assert server.requests == []


def test_a_revision(home, whole):
    with Hub(whole) as server:
        assert find("owner/sd@fp16", server=server)[0] == 0
        assert (home / "home/hub/models--owner--sd/refs/fp16").read_text() == COMMIT
        assert "has no revision 'gone'" in refused(find("owner/sd@gone", server=server))
        server.requests.clear()
        assert find(f"owner/sd@{COMMIT}", server=server)[0] == 0 and server.requests == []


def test_cut_off_half_way_goes_on_where_it_was(home, whole, model):
    size = len(model[UNET])
    with Hub(whole, cut={UNET: 100}) as server:
        said = refused(find(server=server))
        assert "stopped in the middle" in said and "goes on where it was" in said
        left = next((home / "home/hub/models--owner--sd/blobs").glob("*.incomplete")).stat().st_size
        assert size // 4 < left < size and UNET not in in_cache(home)
        server.cut.clear()
        server.requests.clear()
        assert find(server=server)[0] == 0
        # the rest of that file, by one request
        assert server.fetched() == [UNET]
        assert [asked for m, path, asked in server.requests if m == "GET" and UNET in path] == [f"bytes={left}-"]
    assert in_cache(home) == set(model) and not list(home.rglob("*.incomplete"))


def test_cut_off_once_is_mended_in_the_same_run(home, whole):
    with Hub(whole, cut={UNET: 1}) as server:
        assert find(server=server)[0] == 0 and server.fetched().count(UNET) == 2


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, "no path here, and the Hub shows no model of that name (HTTP 401)"),
        (403, "accepted its terms"),
        (503, "HTTP 503"),
    ],
)
def test_refusals(status, expected, home):
    with Hub({}, status=status) as server:
        said = refused(find(server=server))
        assert expected in said and "owner/sd" in said
        assert 1 <= len(server.requests) <= 8


def test_no_such_model(home, whole):
    with Hub(whole) as server:
        said = refused(find(checkpoint="owner/sdd", server=server))
        assert "owner/sdd is no path here" in said and "HTTP 404" in said and len(server.requests) == 1
    with Hub({"owner/sd": {"README.md": b"nothing"}}) as server:
        said = refused(find(server=server))
        assert "owner/sd on the Hub has no text_encoder/config.json" in said and "there: README.md" in said


def test_wrong_hash(home, whole, model):
    with Hub(whole, hashes={UNET: "0" * 64}) as server:
        said = refused(find(server=server))
        assert UNET in said and "other bytes than the Hub says" in said and "not kept" in said
        assert UNET not in in_cache(home) and not list(home.rglob("*.incomplete"))
        server.hashes.clear()
        assert find(server=server)[0] == 0 and in_cache(home) == set(model)


def test_no_room_is_said_before_anything_is_fetched(home, whole):
    with Hub(whole, sizes={UNET: 10**16}) as server:
        said = refused(find(server=server))
        assert "takes 10000000" in said and "GB free" in said and server.fetched() == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_fills_up(home, whole, model):
    with Hub(whole) as server:
        blobs = home / "home/hub/models--owner--sd/blobs"
        blobs.mkdir(parents=True)
        (blobs / f"{server.hash_of(UNET, model[UNET])}.incomplete").symlink_to("/dev/full")
        assert "no space left in" in refused(find(server=server))


def test_offline_never_asks(home, whole):
    with Hub(whole) as server:
        for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            said = refused(find(server=server, **{variable: "1"}))
            assert f"since {variable} is set" in said and "has none of it" in said
        assert server.requests == []
    assert "cannot be reached" in refused(find())


def test_a_file_that_is_gone_from_the_cache_is_fetched_again(home, whole):
    with Hub(whole) as server:
        assert find(server=server)[0] == 0
        unet = home / "home/hub/models--owner--sd/snapshots" / COMMIT / UNET
        unet.resolve().unlink()
        server.requests.clear()
        assert find(server=server)[0] == 0 and server.fetched() == [UNET]


def test_a_checkpoint_without_a_tokenizer_takes_clips(home):
    """Without a network, it is said what to pass; with one, CLIP's vocabulary is fetched, and nothing else."""
    find_it = "from fz.shell import answered; from fz.weights.tokenizer import find_tokenizer\n"
    find_it += "import sys; sys.exit(answered(lambda: print(find_tokenizer(None, None))))"
    clip = {name.removeprefix("tokenizer/"): content for name, content in of_mini("tokenizer").items()}
    said = refused(process("-c", find_it, HF_HUB_OFFLINE="1"))
    assert (
        "openai/clip-vit-large-patch14" in said and "Pass --tokenizer DIR" in said and "HF_HUB_OFFLINE is set" in said
    )
    with Hub({"openai/clip-vit-large-patch14": clip | {"model.safetensors": b"z" * 9000}}) as server:
        assert process("-c", find_it, server=server)[0] == 0
        assert set(server.fetched()) == set(clip)
    code, said, _ = process("-c", find_it, HF_HUB_OFFLINE="1")
    assert code == 0 and said.strip().endswith(COMMIT)


def test_models_in_several_files(home):
    index, shards = (
        "unet/diffusion_pytorch_model.safetensors.index.json",
        [f"unet/diffusion_pytorch_model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)],
    )
    files = {
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        index,
        *shards,
    }
    choice = choose(files, of_checkpoint(vae=False))
    assert choice.files[-4:] == [index, *shards] and not choice.lacking and not choice.alone
    assert choice.optional == ["scheduler/scheduler_config.json", "tokenizer/vocab.json and merges.txt"]
    one_less = choose(files - {shards[1]}, of_checkpoint(vae=False))
    assert one_less.lacking == ["unet/diffusion_pytorch_model.safetensors"]
    # plain weights are those that are called so
    assert choose(files, of_checkpoint("plain")).lacking[-1] == "unet/diffusion_pytorch_model.non_ema.safetensors"


def test_a_model_that_is_one_file():
    choice = choose({"a.safetensors", "a.ckpt", "README.md"}, of_checkpoint())
    assert (choice.files, choice.lacking, choice.optional, choice.alone) == (["a.safetensors"], [], [], True)
    assert choose({"a.safetensors", "b.safetensors"}, of_checkpoint()).lacking
    # of several, the one that was named
    choice = choose({"a.safetensors", "b.safetensors"}, of_checkpoint(), "b.safetensors")
    assert choice.files == ["b.safetensors"] and choice.alone and not choice.lacking
    # the original config beside it comes along
    files = {"a.safetensors", "a.yaml", "b.yaml"}
    for name in (None, "a.safetensors"):
        choice = choose(files, of_checkpoint(), name)
        assert choice.files == ["a.yaml", "a.safetensors"] and choice.place(Path("x")) == Path("x/a.safetensors")
    assert choose(files, OF_LORA, "a.safetensors").files == ["a.safetensors"]
    # a VAE's config counts, too
    choice = choose({"v/config.json", "v/vae.pt", "config.json"}, OF_VAE, "v/vae.pt")
    assert choice.files == ["v/config.json", "v/vae.pt"]


# ---- LoRA and textual inversions ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (["a.safetensors", "README.md", "a.png"], ["a.safetensors"]),
        (["a.safetensors", "pytorch_lora_weights.safetensors"], ["pytorch_lora_weights.safetensors"]),
        (["pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"], ["pytorch_lora_weights.safetensors"]),
        (["adapter_config.json", "adapter_model.safetensors"], ["adapter_config.json", "adapter_model.safetensors"]),
        (["a.safetensors", "a.pt", "b.pt"], ["a.safetensors"]),
        (["optimizer.bin", "scheduler.bin", "random_states_0.pkl", "a.bin", "checkpoint-5/a.safetensors"], ["a.bin"]),
        (["loras/a.safetensors", "loras/README.md"], ["loras/a.safetensors"]),
    ],
)
def test_the_file_of_a_lora(files, taken):
    choice = choose(set(files), OF_LORA)
    assert (choice.files, choice.lacking, choice.either, choice.alone) == (taken, [], [], True)


def test_no_file_of_a_lora_and_several():
    assert choose(of_mini("unet", "vae", "text_encoder"), OF_LORA).lacking
    assert choose({"a.pt", "b.pt", "c.safetensors", "d.safetensors"}, OF_LORA).either == [
        "c.safetensors",
        "d.safetensors",
    ]


ON_TOP = {"lora": ("pytorch_lora_weights.safetensors", 0.8), "embedding": ("learned_embeds.safetensors", "<cat>")}


@pytest.fixture(scope="module")
def on_top(tmp_path_factory):
    """Bytes of a LoRA and of an embedding for the miniature."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("on_top")
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    rows, columns = load_file(MINI / "unet/diffusion_pytorch_model.safetensors")[f"{layer}.weight"].shape
    made = {
        "lora": {
            f"unet.{layer}.lora.down.weight": torch.ones(2, columns),
            f"unet.{layer}.lora.up.weight": torch.ones(rows, 2),
        },
        "embedding": {
            "<cat>": torch.ones(1, json.loads((MINI / "text_encoder/config.json").read_text())["hidden_size"])
        },
    }
    for what, tensors in made.items():
        save_file(tensors, folder / what)
    return {what: (folder / what).read_bytes() for what in made}


@pytest.mark.parametrize("what", ["lora", "embedding"])
def test_lora_and_embedding_fresh_cached_and_offline(what, home, on_top):
    """The whole command, whose report says what was put on the checkpoint."""
    usual, value = ON_TOP[what]
    flags = ("--size", "64", "--frames", "2", "--cache", "none", "--dry-run", f"--{what}", f"owner/style={value}")
    repository = {usual: on_top[what], "README.md": b"r", "other.png": b"p" * 9000, "checkpoint-5/optimizer.bin": b"o"}
    expected = "LoRA owner/style × 0.8 (1 layers of rank 2)" if what == "lora" else "embedding <cat> (1 vector)"
    with Hub({"owner/style": repository}) as server:
        code, said, error = fz("run", *flags, server=server)
        assert code == 0 and expected in said, error
        assert server.fetched() == [usual] and server.count("GET", "/api/") == 1
        server.requests.clear()
        assert fz("run", *flags, server=server)[0] == 0 and server.requests == []
    code, said, error = fz("run", *flags, HF_HUB_OFFLINE="1")
    assert code == 0 and expected in said, error


@pytest.mark.parametrize("what", ["lora", "embedding"])
def test_one_of_several_files_is_named(what, home):
    repository = {name: name.encode() * 900 for name in ("a.safetensors", "b.safetensors", "more/b.safetensors")}
    with Hub({"owner/style": repository}) as server:

        def asked(name, **env):
            return find(None, server=server, settings={what: [(name, None)]}, **env)

        said = refused(asked("owner/style"))
        assert "has 2 files that may be meant (a.safetensors, b.safetensors), expected one" in said
        assert f"Name it, as --{what} owner/style:a.safetensors." in said and server.fetched() == []
        said = refused(asked("owner/style:c.safetensors"))
        assert "owner/style on the Hub has no c.safetensors (there: a.safetensors, b.safetensors" in said
        for name, file in (
            ("owner/style:b.safetensors", "b.safetensors"),
            ("owner/style@fp16:more/b.safetensors", "more/b.safetensors"),
        ):
            server.requests.clear()
            assert asked(name)[0] == 0 and server.fetched() == [file]
            server.requests.clear()
            assert asked(name, HF_HUB_OFFLINE="1")[0] == 0 and server.requests == []
        # the one that was fetched is not taken for the one that is meant, with or without a network
        for env in ({}, {"HF_HUB_OFFLINE": "1"}):
            server.requests.clear()
            said = refused(asked("owner/style", **env))
            assert f"Name it, as --{what} owner/style:a.safetensors." in said and server.requests == []
        said = refused(asked("owner/style:a.safetensors", HF_HUB_OFFLINE="1"))
        assert "HF_HUB_OFFLINE is set" in said and "has no a.safetensors" in said and server.requests == []
        assert "HTTP 404" in refused(asked("owner/stile")) and "HTTP 404" in refused(asked("owner/stile:b.safetensors"))


def test_what_of_several_is_in_the_cache_is_a_file_of_its_own(home, on_top):
    """Runs that name different files of a repository are different runs."""
    from fz.weights.embedding import read_embedding

    snapshot = home / "home/hub/models--owner--style/snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs/main").write_text(COMMIT)
    for name in ("a.safetensors", "b.safetensors"):
        (snapshot / name).write_bytes(on_top["embedding"])
    with pytest.raises(FzError, match="has 2 files that may be meant"):
        read_embedding("owner/style")
    assert read_embedding("owner/style:b.safetensors").path == snapshot / "b.safetensors"
    # so is a folder with one file, and the cache's own
    assert hub.located(snapshot, "checkpoint", of_checkpoint()) == snapshot
    (snapshot / "a.safetensors").unlink()
    assert read_embedding(snapshot.parent.parent).path == snapshot / "b.safetensors"
    assert hub.located(snapshot, "lora", OF_LORA) == hub.located(snapshot, "embedding", OF_EMBEDDING)


@pytest.mark.parametrize("name", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
def test_a_cache_of_a_user_that_there_is_not(name, monkeypatch):
    for other in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "~nosuchuser/x")
    with pytest.raises(FzError, match=f"^{name}: ~nosuchuser is no user of this machine"):
        hub_cache()

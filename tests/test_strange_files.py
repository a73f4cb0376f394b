"""Files of fz's own that are no files any more, text that is none, arrays that numpy cannot read: one line, at once."""

import os

import pytest
from PIL import Image

from fz import records
from fz.errors import FzError
from fz.memory.kept import read_tensors
from fz.prompts.text import encodes
from fz.results.measured import read_truth
from fz.results.rows import is_evaluation
from fz.tuning.lora import caption
from fz.weights.read import read_json, read_weights


@pytest.fixture(params=["pipe", "device", "loop", "folder"])
def no_file(request, tmp_path):
    path = tmp_path / "odd"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if request.param == "device" else "odd")
    return path


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes pipes")
def test_what_is_no_file_is_not_waited_for(no_file, tmp_path):
    assert records.read(no_file, dict) is None and not is_evaluation(no_file)
    csv = no_file.rename(tmp_path / "odd.csv") if not no_file.is_symlink() else no_file
    assert not is_evaluation(csv)
    said = []
    assert read_tensors(csv, said.append) is None and len(said) <= 1
    for read in (read_json, read_weights, lambda path: read_truth(None, None, str(path))):
        with pytest.raises(FzError):
            read(csv)


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    """Windows' editor writes one."""
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == records.read(tmp_path / "a.json", {"a": int}) == {"a": 1}
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa cat on a mat\r\n")
    assert caption(tmp_path / "a.txt") == "a cat on a mat"
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf")
    assert caption(tmp_path / "b.txt") is None


@pytest.mark.parametrize("head", ["{'descr': '<f4', (", "{'descr': '<f4', 'shape': (2,), 'x", "\x00" * 30])
def test_a_flow_whose_header_is_damaged(tmp_path, head):
    content = head.encode().ljust(117) + b"\n"
    (tmp_path / "flow.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content)
    with pytest.raises(FzError, match="flow: .* cannot be read"):
        read_truth(None, None, str(tmp_path / "flow.npy"))


@pytest.mark.parametrize("flag", ["checkpoint", "vae", "tokenizer", "lora", "embedding", "control", "video", "mask"])
def test_a_link_that_leads_nowhere_is_called_one(flag, tmp_path, monkeypatch, capsys):
    from fz import run

    monkeypatch.chdir(tmp_path)
    # a name that the Hub could have
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/model").symlink_to("gone.ckpt")
    (tmp_path / "clip").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "clip/0.png")
    flags = {"--source": "a red car", "--target": "a blue car", "--cache": "none", "--video": "clip", "--frames": "1"}
    flags = [text for pair in {**flags, f"--{flag}": "mine/model"}.items() for text in pair]
    assert run.main(flags) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fz: {flag}: mine/model is a link to gone.ckpt, which does not exist. Expected a ")
    assert said.count("\n") == 1


def test_text_is_what_utf_8_has():
    assert encodes("a red car – ä 車") and not encodes(os.fsdecode(b"a \xff car"))

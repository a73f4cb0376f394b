"""Files of fz's own that are no files any more, text that is none, arrays that numpy cannot read: one line, at once."""

import os

import pytest

from fz import records
from fz.errors import FzError
from fz.memory.kept import read_tensors
from fz.prompts.text import encodes
from fz.results.measured import read_truth
from fz.results.rows import is_evaluation
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


@pytest.mark.parametrize("head", ["{'descr': '<f4', (", "{'descr': '<f4', 'shape': (2,), 'x", "\x00" * 30])
def test_a_flow_whose_header_is_damaged(tmp_path, head):
    content = head.encode().ljust(117) + b"\n"
    (tmp_path / "flow.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content)
    with pytest.raises(FzError, match="flow: .* cannot be read"):
        read_truth(None, None, str(tmp_path / "flow.npy"))


def test_text_is_what_utf_8_has():
    assert encodes("a red car – ä 車") and not encodes(os.fsdecode(b"a \xff car"))

"""What does a run of `bench.gpu` leave of each stage, and what of it may a later stage rely on?

One JSON file for each stage, written anew with every row, so that a kernel that never ends costs no row before it. It
says on which device and with which kernels it was measured: a wrong kernel is not timed, also not by a later run.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.gpu_run import Row
from bench.here import commit, machine
from fz import kernels, records
from fz.errors import FzError
from fz.whole import write_text

CHECK = 2  # the stage that the later ones need
SCHEMA = {"device": str, "dry": bool, "commit": str, "kernels": str, "done": bool, "rows": [dict]}


def digest() -> str:
    """Of what stage 2 checks, and of what it checks it with."""
    sha = hashlib.sha256(torch.__version__.encode())
    for file in [*sorted(Path(kernels.__file__).parent.glob("*.py")), Path(__file__).with_name("gpu_kernels.py")]:
        sha.update(file.name.encode() + file.read_bytes())
    return sha.hexdigest()[:16]


@dataclass(frozen=True)
class Record:
    """The files of one device's run. about: what each says of it."""

    folder: Path
    about: dict[str, Any]

    @classmethod
    def of(cls, folder: Path, device: torch.device, dry: bool) -> "Record":
        """Raises FzError where the folder has another device's."""
        record = cls(folder, {"device": machine(device), "dry": dry, "commit": commit(), "kernels": digest()})
        for file in sorted(folder.glob("[0-9]-*.json")):
            found = records.read(file, SCHEMA) or {"device": "another version of this bench", "dry": dry}
            if (found["device"], found["dry"]) != (record.about["device"], dry):
                theirs, ours = (f"{a['device']}{', --dry' if a['dry'] else ''}" for a in (found, record.about))
                raise FzError(f"out: {file} is of {theirs}; this run is of {ours}. Pass another --out.")
        return record

    def write(self, stage: str, rows: Sequence[Row], done: bool) -> None:
        """stage: number and name; done: were these all rows?"""
        content = self.about | {"done": done, "rows": list(rows)}
        write_text(self.folder / f"{stage}.json", json.dumps(content, indent=1, default=str) + "\n")

    def unproven(self) -> str | None:
        """Why nothing may be timed: a kernel is wrong, or not all were checked. None where all are right."""
        file = next(self.folder.glob(f"{CHECK}-*.json"), None)
        found = file and records.read(file, SCHEMA)
        if not found or found["kernels"] != self.about["kernels"]:
            return f"these kernels were not checked on {self.about['device']}"
        wrong = [row["case"] for row in found["rows"] if row.get("right") is False]
        if wrong:
            return f"{len(wrong)} wrong, first {wrong[0]}"
        if not found["done"] or not found["rows"] or any("skipped" in row or "failed" in row for row in found["rows"]):
            return "not all kernels were checked"
        return None

"""Which rows have the paper's Table 1 and ablations, and what does each change in a run's settings?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fz.errors import FzError, suggest
from fz.settings.config import ABLATIONS


@dataclass(frozen=True)
class TableRow:
    """A row: what it changes in the settings, of the run and of each edit. only: the kinds of edit for which it is a
    different method.

    key: what --methods calls it; name: what the table does.
    """

    key: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    edit: Mapping[str, Any] = field(default_factory=dict)
    only: tuple[str, ...] = ("attribute", "shape", "style")


def ablation(name: str, title: str, only: tuple[str, ...] = TableRow.only) -> TableRow:
    """The row of one of `--ablate`."""
    edit = {
        path.removeprefix("edits.*."): value for path, value in ABLATIONS[name].items() if path.startswith("edits.*.")
    }
    return TableRow(
        name,
        title,
        {path: value for path, value in ABLATIONS[name].items() if not path.startswith("edits.")},
        edit,
        only,
    )


TABLE = (
    TableRow("fatezero", "FateZero"),
    TableRow("ddim", "DDIM inversion, target prompt", {"method": "ddim"}),
    TableRow("null-p2p", "frame-wise: Null-text & p2p", {"method": "null-p2p"}),
    TableRow("sdedit", "frame-wise: SDEdit", {"method": "sdedit"}),
    TableRow("pnp", "Plug-and-play features", {"method": "pnp"}),
    TableRow("frame-ddim", "frame-wise: DDIM inversion, target prompt", {"method": "ddim", "frame_index": (0,)}),
    TableRow("frame-fusion", "frame-wise: attention fusion, no mask", {"frame_index": (0,)}, {"threshold": None}),
)
ABLATED = (
    ablation("reconstruction", "Fig. 3, 8: attention of reconstruction"),
    ablation("no-self", "Fig. 4, 9: no self-attention fused", ("shape",)),
    ablation("full-self", "Fig. 4, 9: all self-attention fused, without mask", ("shape",)),
    ablation("no-cross", "no cross-attention fused"),
)
# rows of the paper's Table 1 that are not in the table, and why
MISSING = {
    "Tune-A-Video + DDIM": "pass --checkpoint TUNED; it is then 'DDIM inversion, target prompt'",
    "Layered neural atlas": "not built",
}
EVERY = {method.key: method for method in (*TABLE, *ABLATED)}
SHAPES = "FateZero, shape edits"


def methods_of(names: Sequence[str] | None) -> list[TableRow]:
    """The methods of these names, or all, in the table's order. Raises FzError for one that there is not."""
    for name in names or ():
        if name not in EVERY:
            raise FzError(f"methods: got {name!r}, expected any of {', '.join(EVERY)}.{suggest(name, EVERY)}")
    return [method for key, method in EVERY.items() if names is None or key in names]

"""Which settings of two runs are not the same, and how is that told in a line?"""

import json
from collections.abc import Mapping
from typing import Any


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings by name, as clip.size or edits.0.threshold, that are not the same: (there, here)."""
    apart = len(before.get("edits") or ()) == len(now.get("edits") or ())
    flat = [flattened(settings, apart) for settings in (before, now)]
    both = dict.fromkeys([*flat[1], *flat[0]])
    return {k: (flat[0].get(k), flat[1].get(k)) for k in both if flat[0].get(k) != flat[1].get(k)}


def flattened(settings: Mapping[str, Any], edits: bool) -> dict[str, Any]:
    """Settings by name, as clip.size; edits: also those of each edit, as edits.0.threshold."""
    flat = {k: v for k, v in settings.items() if k != "clip" and not (edits and k == "edits")}
    flat |= {f"clip.{k}": v for k, v in (settings.get("clip") or {}).items()}
    of_edits = enumerate(settings.get("edits") or ()) if edits else ()
    return flat | {f"edits.{i}.{k}": v for i, edit in of_edits for k, v in edit.items()}


def brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return repr(text) if isinstance(value, str) and len(text) <= 60 else text if len(text) <= 60 else f"{text[:57]}…"

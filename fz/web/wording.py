"""What are the page's controls called, and what does the page say of an error of the core's?

The core names settings, flags and tokens; a visitor sees controls and sentences. A line that no rule knows stays as it
is.
"""

import re
from collections.abc import Callable

# by their names in a form
LABELS = {
    "model": "Model",
    "frames": "How many frames",
    "start": "Begin after frame",
    "every": "Take every … frame",
    "size": "Size of the picture",
    "source": "What is in the clip?",
    "target": "What should it become?",
    "kind": "What changes?",
    "keep_shape": "Keep the shape",
    "keep_place": "Keep things in place",
    "area": "Let shapes change where the changed words are",
    "area_limit": "How tight the area is",
    "keep_background": "Leave all outside the area untouched",
    "remove": "Take away",
    "enhance": "Polish with",
    "steps": "Steps",
    "guidance": "How strictly words are followed",
    "fast": "Fast: a little less sure, sooner",
    "stays": "Go on when I close this page",
}
STRENGTH = "Strength of each word"
MORE = "More: take away, polish, draw an area"

# what the core calls them, where a line begins with it
NAMES = {
    **{name: LABELS[name] for name in ("frames", "start", "every", "size", "remove", "enhance", "steps", "guidance")},
    "source": "The first sentence",
    "target": "The second sentence",
    "prompt": "A sentence",
    "reweight": STRENGTH,
    "threshold": LABELS["area_limit"],
    "self_replace": LABELS["keep_shape"],
    "cross_replace": LABELS["keep_place"],
    "checkpoint": LABELS["model"],
    "video": "Your clip",
}
ROOM = "Take fewer frames or a smaller size."
# as the command line and as Python have it
SETTING = re.compile(r"(?:--(?P<flag>frames|start|every|size|steps) |\b(?P<name>frames|start|every|size|steps)=)(?=\d)")


def missing(found: re.Match) -> str:
    """Of words that are not in their sentence."""
    what, word, near, known = found["what"], found["word"], found["near"] or "", found["known"]
    head = f"{NAMES[what]}: " if what in NAMES else ""
    sentence = "the second sentence" if what == "reweight" else "the first sentence"
    listed = f" Its words: {known}." if known else ""
    return f"{head}{word} is not in {sentence}.{near}{listed}"


# how a line of the core's is found, and what is said in its place
RULES: tuple[tuple[re.Pattern, str | Callable[[re.Match], str]], ...] = (
    (
        re.compile(r"keep_background: no word of the source differs.*"),
        f"“{LABELS['keep_background']}” needs an area, and no word of the first sentence changes. Draw one under "
        "“More”, or leave it out.",
    ),
    (
        re.compile(
            r"prompt: \d+ tokens, expected .* These words fall off: (?P<lost>.*)\. "
            r"Shorten ['\"](?P<text>.*)['\"](?P<more>…?)"
        ),
        r"This sentence is too long: “\g<text>\g<more>”. There is no room for its words \g<lost>. Shorten it.",
    ),
    (
        re.compile(
            r"(?P<what>\w+): (?P<word>'[^']*'|\"[^\"]*\") is not in the (?:prompt|source) .*?"
            r"(?P<near> Did you mean .*?\?)?(?: Words there: (?P<known>.*)\.| Expected words as they follow there\.)"
        ),
        missing,
    ),
    (
        re.compile(r"remove: nothing is left of the source.*"),
        f"{LABELS['remove']}: nothing is left of the first sentence. Take away fewer words, or say under "
        f"“{LABELS['target']}” what is there then.",
    ),
    (
        re.compile(r"(?P<head>.*?)(?P<text>['\"].*['\"]) has bytes that are no text.*"),
        r"\g<head>\g<text> has signs that are no text. Write it again.",
    ),
    (re.compile(r"out of memory\..*"), f"There is not enough memory for this. {ROOM}"),
    (re.compile(r"(?:memory|store): (?P<got>.* are free).*"), rf"Too large: \g<got>. {ROOM}"),
)  # fmt: skip


def for_visitors(line: str) -> str:
    """An error's line in the page's words; worded once more, it stays as it is."""
    for pattern, said in RULES:
        if found := pattern.fullmatch(line):
            line = said(found) if callable(said) else found.expand(said)
            break
    name, colon, rest = line.partition(": ")
    if colon and name in NAMES:
        line = f"{NAMES[name]}: {rest}"
    line = SETTING.sub(lambda found: f"“{LABELS[found['flag'] or found['name']]}” ", line)
    return line.replace("--", "")

"""Appendix B's applications as sentences: the target of `--remove` and of `--enhance`, made from the source.

Removing drops words from the source (what hides the object's keys is `fz.fusion`'s part), enhancing adds words to a
sentence, which are then re-weighted. Nothing here knows tokens or models.
"""

from collections.abc import Mapping
from typing import Any

from fz import words as sentences
from fz.errors import FzError, suggest
from fz.words import ARTICLES, bare, inner

# what a removal is done with unless told: new rows where the object was, and the source's attention long enough to keep
# the rest
REMOVAL: Mapping[str, Any] = {
    "align": "refine",
    "threshold": 0.3,
    "self_replace": (0.0, 0.8),
    "cross_replace": (0.0, 0.5),
}
ENHANCEMENT: Mapping[str, Any] = {"align": "refine"}
# what follows a noun and is none; before another word stands what describes it
AFTER_NOUNS = frozenset(
    "about above across after against along among and are around as at before behind below beneath beside between "
    "beyond but by down during for from in inside into is near next of off on onto or out outside over past that "
    "through to toward towards under up upon was were which while who with within without".split()
)


def phrases(words: str) -> list[str]:
    """'red car, ball' -> ['red car', 'ball']: what is removed, each as it stands in the source."""
    return [" ".join(phrase.split()) for phrase in words.split(",") if phrase.strip()]


def without(source: str, words: str) -> str:
    """The source without these phrases, and without the article before them and the 'and' beside them, unless a noun
    follows that these belong to: 'a red car' without 'red' is 'a car', without 'red car' nothing.

    Raises FzError for a phrase that is not there and where nothing is left.
    """
    left = sentences.split(source)
    for phrase in phrases(words):
        wanted = sentences.compared(phrase)
        places = [i for i in range(len(left)) if [bare(word) for word in left[i : i + len(wanted)]] == wanted]
        if not places:
            near = suggest(phrase.lower(), [bare(word) for word in left])
            raise FzError(
                f"remove: {phrase!r} is not in the source {source!r}.{near} Expected words as they follow there."
            )
        for start in reversed(places):
            end = start + len(wanted)
            if not describes(left, end):
                if start and bare(left[start - 1]) in ARTICLES:
                    start -= 1
                if start and bare(left[start - 1]) == "and":
                    start -= 1
                elif left[end : end + 1] and bare(left[end]) == "and":
                    end += 1
            left = left[:start] + left[end:]
    if not left:
        raise FzError(
            f"remove: nothing is left of the source {source!r}. Expected words that leave a sentence, or --target "
            "to say it."
        )
    return " ".join(left)


def describes(there: list[str], end: int) -> bool:
    """Does the phrase that ends before word `end` belong to a noun after it, as far as that word tells? What ends in
    'ing' or 's' is taken for a verb.
    """
    if end == len(there) or inner(there[end - 1])[1] < len(there[end - 1]):
        return False
    following = bare(there[end])
    return following not in AFTER_NOUNS and following not in ARTICLES and not following.endswith(("ing", "s"))


def enhanced(sentence: str, words: str) -> str:
    """The sentence with the words after it: 'a car' and 'high-quality, 8K' -> 'a car, high-quality, 8K'. Nothing if
    they are there.
    """
    words = " ".join(words.split())
    ends, wanted = sentences.compared(sentence), sentences.compared(words)
    return sentence if ends[-len(wanted) :] == wanted else f"{sentence.rstrip(' ,.')}, {words}"


def target_of(source: str, target: str | None, remove: str | None, enhance: str | None) -> str:
    """An edit's sentence: the one given, or else the source without what is removed; then with what enhances it."""
    sentence = target if target is not None else without(source, remove) if remove else source
    return enhanced(sentence, enhance) if enhance else sentence


def usual_of(remove: str | None, enhance: str | None) -> dict[str, Any]:
    """Settings of such an edit where nothing else is said."""
    return {**(ENHANCEMENT if enhance else {}), **(REMOVAL if remove else {})}


def threshold(value: Any, mask: Any) -> Any:
    """Of a removal, which hides what is under its mask: presets of styles and attributes have none. Raises FzError for
    one that no pixel exceeds, unless there is a mask of the user's.
    """
    if value is None:
        return REMOVAL["threshold"]
    if mask is None and isinstance(value, (int, float)) and value >= 1:
        raise FzError(f"threshold: got {value!r} with a removal, which hides nothing. Expected less than 1, as 0.3.")
    return value


def factors(enhance: str | None, factor: float, reweight: tuple[tuple[str, float], ...]) -> dict[str, float]:
    """Words of the target and how much they are amplified; the user's own over the enhancement's."""
    return ({" ".join(enhance.split()): factor} if enhance else {}) | dict(reweight)

"""CLIP's tokenizer: a sentence in lower case becomes byte pairs, and these numbers (Radford et al. 2021, section 2.4).

By the library `tokenizers` alone. transformers' CLIPTokenizer, which stands on it too, takes a second to import;
tests/test_tokenizer.py compares the two.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

START, END = "<|startoftext|>", "<|endoftext|>"
STOP = "</w>"  # at the end of a word's last token
# the two marks, English endings, letters in a row, a single digit, other signs in a row
PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


class ClipTokenizer:
    """vocabulary: tokens and their numbers; merges: the pairs that become one, the first before the others.

    added: tokens beyond these, found in a sentence as they stand, numbered on. padding: the token after the end.
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        added: Iterable[AddedToken] = (),
        padding: str = END,
    ):
        model = BPE(vocab=dict(vocabulary), merges=list(merges), end_of_word_suffix=STOP, unk_token=END)
        self.library = Tokenizer(model)
        self.library.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        pieces = pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True)
        as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.library.pre_tokenizer = pre_tokenizers.Sequence([pieces, as_bytes])
        self.library.add_tokens(list(added))
        self.start, self.end, self.padding = map(self.library.token_to_id, (START, END, padding))

    def __len__(self) -> int:
        return self.library.get_vocab_size()

    def read(self, text: str) -> tuple[list[int], list[int]]:
        """(token numbers, without start and end; the character at which each begins)."""
        read = self.library.encode(text, add_special_tokens=False)
        return read.ids, [start for start, _ in read.offsets]

    def token(self, number: int) -> str | None:
        """What it stands for: bytes as `tokenizers` writes them, at a word's end with STOP."""
        return self.library.id_to_token(number)

    def number(self, token: str) -> int | None:
        return self.library.token_to_id(token)

    def rows(self, sentences: Sequence[str], longest: int) -> list[list[int]]:
        """Each sentence from start to end, padded to the longest of them; of one over `longest` tokens the first."""
        rows = [[self.start, *self.read(sentence)[0][: longest - 2], self.end] for sentence in sentences]
        width = max(map(len, rows))
        return [row + [self.padding] * (width - len(row)) for row in rows]

    def added(self) -> dict[int, AddedToken]:
        """Tokens that are found in a sentence as they stand, by their numbers; start and end are such."""
        return dict(sorted(self.library.get_added_tokens_decoder().items()))

    def write_vocabulary(self, folder: Path) -> None:
        """vocab.json and merges.txt."""
        folder.mkdir(parents=True, exist_ok=True)
        self.library.model.save(str(folder))

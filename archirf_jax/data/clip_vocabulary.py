"""CLIP's tokenizer from the files that it was published as, vocab.json and merges.txt (Radford et al. 2021, Sec. 2.4).

Byte pairs (Sennrich et al. 2016) of lower-case words, whose last part ends in "</w>".
"""

from __future__ import annotations

import pathlib

from archirf_jax import untrusted
from archirf_jax.errors import UserError

VOCABULARY, MERGES = "vocab.json", "merges.txt"
BEGIN, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
# Words, single digits and runs of signs; the endings of English words and the two tokens around a text stay whole.
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
MOST = 2**26  # bytes of a file of merges


def content(folder: pathlib.Path) -> str:
    """The content of a tokenizer.json that cuts texts as the files of this folder say.

    Raises:
        UserError: a file is absent or damaged, or the two do not belong to each other.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocabulary, merges = _vocabulary(folder / VOCABULARY), _merges(folder / MERGES)
    try:
        model = models.BPE(vocabulary, merges, unk_token=END, end_of_word_suffix=WORD_END, continuing_subword_prefix="")
    except Exception as e:  # the package raises nothing more narrow
        raise UserError("tokenizer", str(folder / MERGES), f"does not belong to {VOCABULARY}: {e}") from e
    backend = Tokenizer(model)
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    around = [(token, vocabulary[token]) for token in (BEGIN, END)]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", pair=f"{BEGIN} $A {END} {END} $B {END}", special_tokens=around
    )
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token, _ in around])
    return str(backend.to_str())


def _vocabulary(path: pathlib.Path) -> dict[str, int]:
    try:
        found = untrusted.read_json(path)
    except untrusted.Unreadable as e:
        raise UserError("tokenizer", str(path), f"is not a vocabulary: {e}") from e
    fits = isinstance(found, dict) and all(type(number) is int and number >= 0 for number in found.values())
    if not fits or not {BEGIN, END} <= found.keys():
        raise UserError(
            "tokenizer", str(path), f"is not a vocabulary of CLIP: ids by token, {BEGIN} and {END} among them"
        )
    return dict(found)


def _merges(path: pathlib.Path) -> list[tuple[str, str]]:
    try:
        if path.stat().st_size > MOST:
            raise ValueError(f"it has more than {MOST:,} bytes")
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as e:
        raise UserError("tokenizer", str(path), f"is not a list of merges: {e}") from e
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    wrong = [pair for pair in pairs if len(pair) != 2]
    if wrong:
        raise UserError("tokenizer", str(path), f"must hold two tokens a line, not {' '.join(wrong[0])!r}")
    return [(first, second) for first, second in pairs]

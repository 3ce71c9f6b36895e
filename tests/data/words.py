"""A tokenizer.json of whole words, as the published ones are written."""

from __future__ import annotations

import json
from typing import Any

WORDS = ("<pad>", "<s>", "</s>", "<unk>", "a", "red", "blue", "square", "circle", "above", "below")
BEGIN, END, UNKNOWN = (WORDS.index(word) for word in ("<s>", "</s>", "<unk>"))


def tokenizer_json(begins: bool = True, **changes: Any) -> str:
    """The file's content: texts end in </s> and, as CLIP's and BERT's, begin with <s>; or not, as T5's."""

    def special(word: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": word, "type_id": 0}}

    around = [*([special("<s>")] if begins else []), {"Sequence": {"id": "A", "type_id": 0}}, special("</s>")]
    known = {word: {"id": word, "ids": [WORDS.index(word)], "tokens": [word]} for word in ("<s>", "</s>")}
    template = {"type": "TemplateProcessing", "single": around, "pair": around, "special_tokens": known}
    model = {
        "type": "WordLevel",
        "vocab": {word: number for number, word in enumerate(WORDS)},
        "unk_token": "<unk>",
    }
    parts = {"truncation": None, "padding": None, "added_tokens": [], "decoder": None, "model": model}
    parts |= {"normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"}}
    return json.dumps({"version": "1.0", "post_processor": template} | parts | changes)

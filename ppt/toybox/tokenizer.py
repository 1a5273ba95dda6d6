"""Words to numbers for the tiny CLIP: the toy world's whole vocabulary fits in a short list."""

import re

import torch

from ppt.toybox.expressions import VOCABULARY

CONTEXT_LENGTH = 20


class WordTokenizer:
    """Callable as open_clip's tokenizers are: list of texts -> LongTensor [n, context_length].

    `<eot>` has the highest number, because open_clip's text tower pools at the argmax.
    """

    context_length = CONTEXT_LENGTH

    def __init__(self) -> None:
        self.words = ("<pad>", "<sot>", "<unk>", *VOCABULARY, "<eot>")
        self._numbers = {word: number for number, word in enumerate(self.words)}

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        """Numbers of the words, unknown ones as `<unk>`; case and punctuation do not count."""
        unknown = self._numbers["<unk>"]
        return [self._numbers.get(word, unknown) for word in re.findall(r"[a-z0-9]+", text.lower())]

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> torch.Tensor:
        texts = [texts] if isinstance(texts, str) else texts
        length = context_length or self.context_length
        numbers = torch.full((len(texts), length), self._numbers["<pad>"])
        for row, text in enumerate(texts):
            words = self.encode(text)[: length - 2]
            line = [self._numbers["<sot>"], *words, self._numbers["<eot>"]]
            numbers[row, : len(line)] = torch.tensor(line)
        return numbers

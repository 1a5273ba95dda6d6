"""The tokenizer of the tiny CLIP, which gives each word of the toy world a number."""

import re

import torch

from ppt.toybox.expressions import VOCABULARY

CONTEXT_LENGTH = 20


class WordTokenizer:
    """A tokenizer with the interface of open_clip's: a call maps n texts to [n, context_length].

    `<eot>` has the highest number, because open_clip's text tower pools at the argmax.
    """

    context_length = CONTEXT_LENGTH

    def __init__(self) -> None:
        self.words = ("<pad>", "<sot>", "<unk>", *VOCABULARY, "<eot>")
        self._numbers = {word: number for number, word in enumerate(self.words)}

    @property
    def vocab_size(self) -> int:
        """The number of words, including the special ones."""
        return len(self.words)

    def knows(self, text: str) -> bool:
        """Return whether every word of a text has a number of its own."""
        return self._numbers["<unk>"] not in self.encode(text)

    def encode(self, text: str) -> list[int]:
        """Return the numbers of the words; unknown words become `<unk>`.

        Upper case and punctuation are ignored. Words may be of any script.
        """
        unknown = self._numbers["<unk>"]
        return [self._numbers.get(word, unknown) for word in re.findall(r"[^\W_]+", text.lower())]

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> torch.Tensor:
        texts = [texts] if isinstance(texts, str) else texts
        length = context_length or self.context_length
        numbers = torch.full((len(texts), length), self._numbers["<pad>"])
        for row, text in enumerate(texts):
            words = self.encode(text)[: length - 2]
            line = [self._numbers["<sot>"], *words, self._numbers["<eot>"]]
            numbers[row, : len(line)] = torch.tensor(line)
        return numbers

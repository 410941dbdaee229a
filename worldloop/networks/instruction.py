"""A language encoder that needs no downloaded vocabulary: hashed words, word pairs and character trigrams.

Signed feature hashing (Weinberger et al. 2009, arXiv:0902.2206) gives any string a fixed sparse vector; only its
projection is learned. Word pairs, with marks for start and end, encode the order ("a on b" is not "b on a"). Through
character trigrams an unseen word shares features with similar words.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from functools import lru_cache

import torch
from torch import Tensor, nn

NUM_BUCKETS = 1024


def _features(text: str) -> list[tuple[str, float]]:
    """(feature, weight) of ``text``: a word weighs 1, a word pair 0.5, a word's trigrams have norm 0.5 together."""
    words = re.findall(r"\w+", text.lower()) or ([text] if text else [])
    pairs = zip(["<start>", *words], [*words, "<end>"], strict=True)
    features = [(f"word:{w}", 1.0) for w in words] + [(f"pair:{a} {b}", 0.5) for a, b in pairs]
    for word in words:
        marked = f"<{word}>"
        trigrams = [marked[i : i + 3] for i in range(len(marked) - 2)]
        features += [(f"tri:{t}", 0.5 / len(trigrams) ** 0.5) for t in trigrams]
    return features


@lru_cache(maxsize=4096)
def hash_instruction(text: str, num_buckets: int = NUM_BUCKETS) -> Tensor:
    """Unit vector f32 [num_buckets] of ``text``, the same in every process. It is cached: do not modify it."""
    vector = torch.zeros(num_buckets)
    for feature, weight in _features(text):
        code = int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=8).digest(), "little")
        vector[code % num_buckets] += weight if code >> 63 else -weight
    return vector / vector.norm().clamp_min(1e-6)


class TextProjection(nn.Module, ABC):
    """``forward(("push the cube", ...)) -> f32 [B, dim]``: what `read` says of each, projected and layer-normalised."""

    def __init__(self, input_dim: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(input_dim, dim)
        # The input has unit scale, so such weights separate instructions from the start.
        nn.init.normal_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        self.norm = nn.LayerNorm(dim)

    @abstractmethod
    def read(self, text: str) -> Tensor:
        """A fixed vector [input_dim] of ``text``, about of unit scale."""

    def forward(self, instructions: tuple[str, ...]) -> Tensor:
        """One embedding per string, f32 [B, dim]; equal strings are projected only once."""
        unique = list(dict.fromkeys(instructions))
        weight = self.project.weight
        embedded: Tensor = self.norm(self.project(torch.stack([self.read(text) for text in unique]).to(weight)))
        if len(unique) == 1:
            return embedded.expand(len(instructions), -1)
        row = [unique.index(text) for text in instructions]
        return embedded[torch.tensor(row, device=weight.device)]


class InstructionEncoder(TextProjection):
    """Hashed features, see `hash_instruction`.

    Any string is allowed, also the empty one. The output depends only on the string and the weights.
    """

    def __init__(self, dim: int, num_buckets: int = NUM_BUCKETS) -> None:
        super().__init__(num_buckets, dim)
        self.num_buckets = num_buckets

    def read(self, text: str) -> Tensor:
        return hash_instruction(text, self.num_buckets)


def mean_token(instruction: Tensor, text_dim: int) -> Tensor:
    """The mean [B, text_dim] of the tokens of ``instruction`` [B, n text_dim]; all-zero tokens are padding."""
    tokens = instruction.unflatten(1, (-1, text_dim))
    return tokens.sum(1) / (tokens != 0).any(2).sum(1, keepdim=True).clamp_min(1)

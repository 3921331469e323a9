r"""Masked language models of transformers as denoisers of masked diffusion.

A masked language model gives :math:`p(x_0^l \mid x_t)` for each masked letter, which is what the ``masked`` process
asks of its network; time is not asked for. Its vocabulary is cut to the letters of the codec: other tokens get no
probability.

Relaxed tokens are read as mixtures of embeddings. ESM scales its embeddings by the share of masked letters ("token
dropout"), from ids only; here relaxed tokens are scaled alike, so that one-hot ones give the logits of their ids.

References:
    Sahoo et al. 2024 (masked diffusion, and that any masked language model is one), https://arxiv.org/abs/2406.07524;
    Lin et al. 2023 (ESM-2), https://doi.org/10.1126/science.ade2574.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from difftilt.core.codec import TokenCodec
from difftilt.core.policy import Policy
from difftilt.core.registry import register
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.processes.masked import Masked
from difftilt.types import Condition, Float, Int, Tensor

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
TRAINED_MASKED = 0.15 * 0.8
"""Share of letters that ESM saw masked in training, to which its embeddings are scaled."""


@register("denoiser", "masked_lm")
class MaskedLM(nn.Module):
    """A ``...ForMaskedLM`` of transformers.

    Args:
        model: the network, or its description ``{"class": name, "config": ...}``.
        letters: id of each letter of the codec, the mask's last.
        before: ids in front of every sequence, such as ``<cls>``.
        after: ids behind it, such as ``<eos>``.
    """

    time_free = True
    letters: Tensor

    def __init__(
        self, model: Any, letters: Sequence[int], before: Sequence[int] = (), after: Sequence[int] = ()
    ) -> None:
        super().__init__()
        if isinstance(model, dict):
            model = _made(model["class"], model["config"])
        self.model: Any = model
        self.before, self.after = list(before), list(after)
        self.register_buffer("letters", torch.tensor(list(letters)), persistent=False)

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Float[Tensor, "B L V"]:
        """Logits of tokens ``[B, L]`` or relaxed tokens ``[B, L, V + 1]``, float32.

        Gradient flows to the weights, and to relaxed tokens.
        """
        if x_t.ndim == 2:
            logits = self.model(input_ids=self._framed(x_t)).logits
        else:
            logits = self.model(inputs_embeds=self._embedded(x_t)).logits
        length = x_t.shape[1]
        return logits[:, len(self.before) : len(self.before) + length, self.letters[:-1]].float()

    def _framed(self, x_t: Int[Tensor, "B L"]) -> Int[Tensor, "B F"]:
        """The model's ids, with those in front and behind."""
        before, after = self._ends(x_t)
        return torch.cat([before, self.letters[x_t], after], dim=1)

    def _embedded(self, x_t: Float[Tensor, "B L V1"]) -> Float[Tensor, "B F D"]:
        """Mixtures of embeddings, with those in front and behind."""
        table = self.model.get_input_embeddings().weight
        rows = table[self.letters]
        scaled = bool(getattr(self.model.config, "token_dropout", False))
        if scaled:
            rows = torch.cat([rows[:-1], torch.zeros_like(rows[-1:])])
        before, after = (table[ids] for ids in self._ends(x_t))
        embedded = torch.cat([before, x_t.to(rows.dtype) @ rows, after], dim=1)
        if scaled:
            masked = x_t[..., -1].sum(1) / embedded.shape[1]
            embedded = embedded * ((1 - TRAINED_MASKED) / (1 - masked)).to(embedded)[:, None, None]
        return embedded

    def _ends(self, x_t: Tensor) -> tuple[Int[Tensor, "B before"], Int[Tensor, "B after"]]:
        before, after = (torch.tensor(ids, dtype=torch.long, device=x_t.device) for ids in (self.before, self.after))
        return before.expand(len(x_t), -1), after.expand(len(x_t), -1)

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        model = {"class": type(self.model).__name__, "config": self.model.config.to_dict()}
        return {"model": model, "letters": self.letters.tolist(), "before": self.before, "after": self.after}


def masked_lm_policy(
    model: Any, *, tokenizer: Any, length: int, alphabet: str | None = None, steps: int | None = None
) -> Policy:
    """A masked-diffusion policy over sequences of one length.

    Args:
        model: a ``...ForMaskedLM``.
        tokenizer: its tokenizer: every letter is one token, the mask has one.
        length: letters ``L`` of a design.
        alphabet: letters that designs are made of; when not given, the twenty amino acids where all are tokens, else
            every token of one capital letter.
        steps: steps ``K`` of the chain; ``length``, one letter a step, when not given.

    Raises:
        ConfigError: a letter is not a token, there is no mask token, or the model has fewer positions than letters.
        UnsupportedError: another kind of model.
    """
    if not type(model).__name__.endswith("ForMaskedLM"):
        raise UnsupportedError(
            f"expected a masked language model of transformers (...ForMaskedLM); got {type(model).__name__}; load it "
            "with AutoModelForMaskedLM"
        )
    known = tokenizer.get_vocab()
    if alphabet is None:
        single = "".join(sorted(token for token in known if len(token) == 1 and token.isupper()))
        alphabet = RESIDUES if set(RESIDUES) <= set(single) else single
    missing = [letter for letter in alphabet if letter not in known]
    if missing or not alphabet or tokenizer.mask_token_id is None:
        came = f"no token '{missing[0]}'" if missing else "no letters" if not alphabet else "no mask token"
        raise ConfigError(f"expected a tokenizer with one token per letter and a mask; got {came}; pass alphabet=...")
    framed = tokenizer(tokenizer.mask_token)["input_ids"]
    place = framed.index(tokenizer.mask_token_id)
    letters = [*(known[letter] for letter in alphabet), tokenizer.mask_token_id]
    denoiser = MaskedLM(model, letters, framed[:place], framed[place + 1 :])
    codec = TokenCodec(alphabet, length)
    most = _places(model) - len(denoiser.before) - len(denoiser.after)
    if not 1 <= length <= most:
        raise ConfigError(
            f"expected a length of 1 to {most}, for which {type(model).__name__} has positions; got {length}; change it"
        )
    steps = length if steps is None else steps
    return Policy(denoiser, Masked(len(alphabet)), codec, (length,), steps=steps).to(model.device).eval()


def _places(model: nn.Module) -> float:
    """Longest sequence that a model reads: rows of its table of positions, if it has one; they follow the padding's."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return math.inf


def _made(name: str, config: dict[str, Any]) -> nn.Module:
    """A model with fresh weights, of a class that transformers has."""
    found = getattr(importlib.import_module("transformers"), name, None) if name.endswith("ForMaskedLM") else None
    if found is None:
        raise UnsupportedError(
            f"expected a masked language model of transformers; got '{name}'; is the file another library's?"
        )
    return found(found.config_class.from_dict(config))

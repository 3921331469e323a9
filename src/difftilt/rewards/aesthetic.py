r"""LAION's aesthetic score: a head on CLIP's embedding of the image, differentiable.

.. math:: r(x) = h\big( e / |e| \big), \qquad e = \mathrm{CLIP}(x)                                      \qquad (1)

with ``h`` an affine map (LAION-Aesthetics V1), or several in a row without anything between them (the "improved
aesthetic predictor" that DDPO raises: its dropouts do nothing when it is not trained). About 1 (ugly) to 10.

Nothing is downloaded: the weights are read from a folder of the user's,

- ``config.json`` and ``model.safetensors`` of a CLIP model of transformers, such as ``openai/clip-vit-large-patch14``
  as ``save_pretrained`` writes it; a ``preprocessor_config.json`` is obeyed where there is one;
- a head in safetensors: weights ``[out, in]`` and biases, applied in the order of the numbers in their names.

Differs from the original in: images are resized in floating point by torch (bicubic, antialiased), and not by Pillow to
8 bits, so that (1) has a gradient; scores differ in the second decimal.

References:
    Schuhmann et al. 2022 (LAION-5B), https://arxiv.org/abs/2210.08402; Radford et al. 2021 (CLIP),
    https://arxiv.org/abs/2103.00020; Black et al. 2023 (DDPO), https://arxiv.org/abs/2305.13301.
"""

from __future__ import annotations

import importlib
import json
import re
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from difftilt.errors import ConfigError, StateError
from difftilt.rewards.images import PixelReward
from difftilt.types import Float, Tensor

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's training images, where no preprocessor says otherwise."""


class AestheticReward(PixelReward):
    """Equation (1) of RGB images (grey ones are repeated) of any size.

    Args:
        clip: a vision model of transformers with ``image_embeds``; frozen here.
        head: embedding to score.
        mean: of each channel, for standardisation.
        std: of each channel.
    """

    def __init__(
        self, clip: Any, head: nn.Module, *, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD
    ) -> None:
        self.clip, self.head = clip.eval().requires_grad_(False), head.eval().requires_grad_(False)
        self.mean, self.std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
        super().__init__(self._score, "aesthetic")

    @classmethod
    def from_folder(cls, folder: str | PathLike[str], head: str | PathLike[str] | None = None) -> AestheticReward:
        """Read CLIP and the head; see the module.

        Args:
            folder: of CLIP.
            head: the head's file; the folder's ``aesthetic.safetensors`` when not given.

        Raises:
            ConfigError: transformers is not installed.
            StateError: a file is missing or cannot be read, or the head does not fit the embedding.
        """
        folder = Path(folder)
        head = folder / "aesthetic.safetensors" if head is None else Path(head)
        for file in (folder / "config.json", folder / "model.safetensors", head):
            if not file.is_file():
                raise StateError(
                    f"expected CLIP's config.json and model.safetensors in '{folder}', and a head; got no '{file}'; "
                    "put it there (docs/images.md says how)"
                )
        clip = _clip(folder)
        layers = read_head(head)
        width = clip.config.projection_dim
        if layers[0].in_features != width:
            raise StateError(
                f"expected a head for embeddings of {width} numbers in '{head}'; got one for {layers[0].in_features}; "
                "use the head of this CLIP"
            )
        told: dict[str, Any] = {}
        if (folder / "preprocessor_config.json").is_file():
            read = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
            keys = {"mean": "image_mean", "std": "image_std"}
            told = {ours: tuple(read[theirs]) for ours, theirs in keys.items() if theirs in read}
        return cls(clip, nn.Sequential(*layers), **told)

    def to(self, device: torch.device | str) -> AestheticReward:
        """Move both networks."""
        self.clip.to(device)
        self.head.to(device)
        return self

    def _score(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
        weight = next(self.head.parameters())
        x = pixels.to(weight)
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        side = self.clip.config.vision_config.image_size if hasattr(self.clip.config, "vision_config") else None
        side = self.clip.config.image_size if side is None else side
        height, width = x.shape[2:]
        scale = side / min(height, width)
        size = [max(side, round(height * scale)), max(side, round(width * scale))]
        x = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        top, left = (size[0] - side) // 2, (size[1] - side) // 2
        x = (x[:, :, top : top + side, left : left + side] - self.mean.to(x)) / self.std.to(x)
        embedding = self.clip(pixel_values=x).image_embeds
        return self.head(F.normalize(embedding, dim=1))[:, 0]


def read_head(file: Path) -> list[nn.Linear]:
    """The affine maps of a head, in order.

    Raises:
        StateError: it cannot be read, or is no chain of affine maps that ends in one number.
    """
    try:
        tensors = load_file(file)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise StateError(f"expected a safetensors file at '{file}'; got {reason}; convert the head") from error
    names = sorted((name for name in tensors if name.endswith("weight")), key=_order)
    layers = []
    for name in names:
        weight = tensors[name].float()
        bias = tensors.get(name.removesuffix("weight") + "bias")
        if weight.ndim != 2 or (layers and weight.shape[1] != layers[-1].out_features):
            raise StateError(
                f"expected affine maps that fit in a row in '{file}'; got {list(weight.shape)} for '{name}'; is it "
                "another head?"
            )
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        layer.weight = nn.Parameter(weight)
        if bias is not None:
            layer.bias = nn.Parameter(bias.float())
        layers.append(layer)
    if not layers or layers[-1].out_features != 1:
        came = ", ".join(names) or "no weights"
        raise StateError(f"expected a head that ends in one number in '{file}'; got {came}; is it another file?")
    return layers


def _order(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _clip(folder: Path) -> Any:
    """CLIP's image part with its projection; every number of it from the file.

    Raises:
        ConfigError: transformers is not installed.
        StateError: it is no CLIP, or tensors are missing.
    """
    try:
        make: Any = importlib.import_module("transformers").CLIPVisionModelWithProjection
    except ImportError:
        raise ConfigError(
            "expected transformers for CLIP; it is not installed; run: pip install 'difftilt[lora]'"
        ) from None
    try:
        model, told = make.from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise StateError(f"expected a CLIP model of transformers in '{folder}'; got {reason}; save it again") from error
    for name in sorted(told["missing_keys"]):
        raise StateError(f"expected '{name}' in '{folder}'; got no such tensor; save CLIP again, whole")
    return model

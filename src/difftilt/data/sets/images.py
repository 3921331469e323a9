"""``emoji``, ``clothing``, ``digits``: images of 32 x 32 and 28 x 28 pixels.

``digits`` is MNIST's *test* set, byte for byte: the 60,000 training images were not to be had. A model that learns from
it must not be judged on the MNIST test set; the task splits its 10,000 images itself.
"""

from __future__ import annotations

from difftilt.data.image_record import ImageRecord
from difftilt.data.record import Origin

GARMENTS = ("dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt")
MNIST = ("patrick-kidger/equinox", "9336d820b2ef66b360fc6cb3611b3da5cefbb14d", "docs/examples/MNIST/MNIST/raw/")

SETS = (
    ImageRecord(
        name="emoji",
        title="Noto emoji on white, 32 x 32 RGB",
        file="images/noto_emoji32.npz",
        sha256="90594211bc7ad84f6d36c446c89d8e5faee5f4a207d3d1c98c07e2e98d6eb249",
        shape=(3583, 32, 32, 3),
        source=(
            "3,583 files png/32/*.png of github.com/googlefonts/noto-emoji at commit "
            "b3e3051a088047d19fd4d49b1c3ac42fb8c3aaf8, composited on white"
        ),
        licence="Apache-2.0 by the repository's README (its LICENSE file is the OFL-1.1)",
        citation="Noto Emoji, Google Fonts, https://github.com/googlefonts/noto-emoji",
    ),
    ImageRecord(
        name="clothing",
        title="photos of ten kinds of garments, 32 x 32 RGB",
        file="images/clothing32.npz",
        sha256="ba437185eab9e988d7c82d0a5c24a065f63fe2f64fd0ffb589e81d14e31c4ad7",
        shape=(3781, 32, 32, 3),
        label_names=GARMENTS,
        source=(
            "3,781 files {train,validation,test}/*/*.jpg of github.com/alexeygrigorev/clothing-dataset-small at commit "
            "11961516512414bf9f6c150a832cfd21b54a6b54, upright, cropped to the middle square, reduced (Lanczos)"
        ),
        licence="CC0-1.0",
        citation="Grigorev, Clothing dataset (small), https://github.com/alexeygrigorev/clothing-dataset-small",
    ),
    ImageRecord(
        name="digits",
        title="the 10,000 handwritten digits of MNIST's test set, 28 x 28 grey",
        file="images/mnist_t10k/t10k-images-idx3-ubyte.gz",
        sha256="8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        shape=(10000, 28, 28),
        label_names=tuple("0123456789"),
        beside={
            "images/mnist_t10k/t10k-labels-idx1-ubyte.gz": (
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
            )
        },
        origins=(
            Origin(
                *MNIST[:2],
                MNIST[2] + "t10k-images-idx3-ubyte.gz",
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            ),
            Origin(
                *MNIST[:2],
                MNIST[2] + "t10k-labels-idx1-ubyte.gz",
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
        ),
        source="the MNIST test set, as distributed",
        licence="CC BY-SA 3.0 as stated in the Keras documentation; the original page was not read",
        citation="LeCun, Cortes, Burges, The MNIST database of handwritten digits (1998)",
    ),
)

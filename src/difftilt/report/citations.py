"""BibTeX of the papers that difftilt implements, and of difftilt."""

TUTORIAL = """\
@article{uehara2024understanding,
  title   = {Understanding Reinforcement Learning-Based Fine-Tuning of Diffusion Models: A Tutorial and Review},
  author  = {Uehara, Masatoshi and Zhao, Yulai and Biancalani, Tommaso and Levine, Sergey},
  journal = {arXiv preprint arXiv:2407.13734},
  year    = {2024}
}"""

SEIKO = """\
@inproceedings{uehara2024feedback,
  title     = {Feedback Efficient Online Fine-Tuning of Diffusion Models},
  author    = {Uehara, Masatoshi and Zhao, Yulai and Black, Kevin and Hajiramezanali, Ehsan and Scalia, Gabriele and
               Diamant, Nathaniel Lee and Tseng, Alex M. and Levine, Sergey and Biancalani, Tommaso},
  booktitle = {Proceedings of the 41st International Conference on Machine Learning},
  note      = {arXiv:2402.16359},
  year      = {2024}
}"""


def software(version: str) -> str:
    """BibTeX of difftilt at the version that made a run; the version is left out where it is unknown."""
    fields = {
        "title": "{difftilt: tilt any diffusion model toward a reward}",
        "author": "{{The difftilt contributors}}",
    }
    if version:
        fields["version"] = f"{{{version}}}"
    return "@software{difftilt,\n" + ",\n".join(f"  {key:7} = {value}" for key, value in fields.items()) + "\n}"


def bibtex(version: str) -> str:
    """All entries."""
    return "\n\n".join([TUTORIAL, SEIKO, software(version)])

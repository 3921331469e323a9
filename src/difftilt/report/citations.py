"""BibTeX of the papers that difftilt implements, and of difftilt."""

from __future__ import annotations

from typing import NamedTuple


class Paper(NamedTuple):
    """A paper to cite."""

    name: str
    """As it is linked, e.g. ``"arXiv:2407.13734"``."""
    url: str
    bibtex: str


def _arxiv(number: str, bibtex: str) -> Paper:
    return Paper(f"arXiv:{number}", f"https://arxiv.org/abs/{number}", bibtex)


TUTORIAL = _arxiv(
    "2407.13734",
    """\
@article{uehara2024understanding,
  title   = {Understanding Reinforcement Learning-Based Fine-Tuning of Diffusion Models: A Tutorial and Review},
  author  = {Uehara, Masatoshi and Zhao, Yulai and Biancalani, Tommaso and Levine, Sergey},
  journal = {arXiv preprint arXiv:2407.13734},
  year    = {2024}
}""",
)

SEIKO = _arxiv(
    "2402.16359",
    """\
@inproceedings{uehara2024feedback,
  title     = {Feedback Efficient Online Fine-Tuning of Diffusion Models},
  author    = {Uehara, Masatoshi and Zhao, Yulai and Black, Kevin and Hajiramezanali, Ehsan and Scalia, Gabriele and
               Diamant, Nathaniel Lee and Tseng, Alex M. and Levine, Sergey and Biancalani, Tommaso},
  booktitle = {Proceedings of the 41st International Conference on Machine Learning},
  note      = {arXiv:2402.16359},
  year      = {2024}
}""",
)

STIENNON = _arxiv(
    "2009.01325",
    """\
@inproceedings{stiennon2020learning,
  title     = {Learning to Summarize with Human Feedback},
  author    = {Stiennon, Nisan and Ouyang, Long and Wu, Jeffrey and Ziegler, Daniel and Lowe, Ryan and Voss, Chelsea and
               Radford, Alec and Amodei, Dario and Christiano, Paul},
  booktitle = {Advances in Neural Information Processing Systems 33},
  note      = {arXiv:2009.01325},
  year      = {2020}
}""",
)

SVDD = _arxiv(
    "2408.08252",
    """\
@article{li2024derivative,
  title   = {Derivative-Free Guidance in Continuous and Discrete Diffusion Models with Soft Value-Based Decoding},
  author  = {Li, Xiner and Zhao, Yulai and Wang, Chenyu and Scalia, Gabriele and Eraslan, Gokcen and Nair, Surag and
             Biancalani, Tommaso and Ji, Shuiwang and Regev, Aviv and Levine, Sergey and Uehara, Masatoshi},
  journal = {arXiv preprint arXiv:2408.08252},
  year    = {2024}
}""",
)

TDS = _arxiv(
    "2306.17775",
    """\
@inproceedings{wu2023practical,
  title     = {Practical and Asymptotically Exact Conditional Sampling in Diffusion Models},
  author    = {Wu, Luhuan and Trippe, Brian L. and Naesseth, Christian A. and Blei, David M. and Cunningham, John P.},
  booktitle = {Advances in Neural Information Processing Systems 36},
  note      = {arXiv:2306.17775},
  year      = {2023}
}""",
)

STEERING = _arxiv(
    "2501.06848",
    """\
@inproceedings{singhal2025general,
  title     = {A General Framework for Inference-time Scaling and Steering of Diffusion Models},
  author    = {Singhal, Raghav and Horvitz, Zachary and Teehan, Ryan and Ren, Mengye and Yu, Zhou and McKeown, Kathleen
               and Ranganath, Rajesh},
  booktitle = {Proceedings of the 42nd International Conference on Machine Learning},
  note      = {arXiv:2501.06848},
  year      = {2025}
}""",
)

REFINEMENT = _arxiv(
    "2502.14944",
    """\
@inproceedings{uehara2025reward,
  title     = {Reward-Guided Iterative Refinement in Diffusion Models at Test-Time with Applications to Protein and DNA
               Design},
  author    = {Uehara, Masatoshi and others},
  booktitle = {Proceedings of the 42nd International Conference on Machine Learning},
  note      = {arXiv:2502.14944},
  year      = {2025}
}""",
)

GUIDANCE = _arxiv(
    "2105.05233",
    """\
@inproceedings{dhariwal2021diffusion,
  title     = {Diffusion Models Beat {GANs} on Image Synthesis},
  author    = {Dhariwal, Prafulla and Nichol, Alexander},
  booktitle = {Advances in Neural Information Processing Systems 34},
  note      = {arXiv:2105.05233},
  year      = {2021}
}""",
)

LANGEVIN = Paper(
    "doi:10.2307/3318418",
    "https://doi.org/10.2307/3318418",
    """\
@article{roberts1996exponential,
  title   = {Exponential Convergence of {Langevin} Distributions and Their Discrete Approximations},
  author  = {Roberts, Gareth O. and Tweedie, Richard L.},
  journal = {Bernoulli},
  volume  = {2},
  number  = {4},
  pages   = {341--363},
  year    = {1996}
}""",
)

SAMPLERS: dict[str, tuple[Paper, ...]] = {
    "best_of_n": (STIENNON,),
    "value_weighted": (SVDD,),
    "smc": (TDS, STEERING),
    "refine": (REFINEMENT,),
    "classifier_guidance": (GUIDANCE,),
    "mcmc": (LANGEVIN,),
}


def software(version: str) -> str:
    """BibTeX of difftilt at the version that made a run; the version is left out where it is unknown."""
    fields = {
        "title": "{difftilt: tilt any diffusion model toward a reward}",
        "author": "{{The difftilt contributors}}",
    }
    if version:
        fields["version"] = f"{{{version}}}"
    return "@software{difftilt,\n" + ",\n".join(f"  {key:7} = {value}" for key, value in fields.items()) + "\n}"


def papers(sampler: str | None) -> list[Paper]:
    """What a run rests on: the tutorial, and what its sampler (``None`` for a tuned model) is from."""
    return [TUTORIAL, *(SAMPLERS.get(sampler, ()) if sampler is not None else (SEIKO,))]


def bibtex(version: str, sampler: str | None) -> str:
    """All entries."""
    return "\n\n".join([*(paper.bibtex for paper in papers(sampler)), software(version)])

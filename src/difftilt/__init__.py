r"""Tilt any diffusion model toward a reward: :math:`p^*(x) \propto p_{pre}(x) \exp(r(x) / \alpha)`.

The 90 % case::

    import difftilt as dt

    policy = dt.load("utr-mrl")
    result = dt.finetune(policy, my_scorer, dt.PPO(alpha=0.1), loop=dt.LoopConfig(steps=200))
    designs = result.policy.sample(1000)
"""

import importlib
from typing import Any

import difftilt.networks
import difftilt.processes  # noqa: F401  (importing registers the parts that model folders name)

_PUBLIC = {
    "load": ("difftilt.build", "load_policy"),
    "finetune": ("difftilt.training.finetune", "finetune"),
    "evaluate": ("difftilt.training.evaluate", "evaluate"),
    "LoopConfig": ("difftilt.training.loop", "LoopConfig"),
    "RunFolder": ("difftilt.tracking.run", "RunFolder"),
    "PPO": ("difftilt.algorithms.ppo", "PPO"),
    "Reinforce": ("difftilt.algorithms.reinforce", "Reinforce"),
    "RewardWeightedMLE": ("difftilt.algorithms.reward_weighted_mle", "RewardWeightedMLE"),
    "PathConsistency": ("difftilt.algorithms.path_consistency", "PathConsistency"),
    "DetailedBalance": ("difftilt.algorithms.path_consistency", "DetailedBalance"),
    "SubtrajectoryBalance": ("difftilt.algorithms.path_consistency", "SubtrajectoryBalance"),
    "RenoisedMLE": ("difftilt.algorithms.renoised_mle", "RenoisedMLE"),
    "ValueWeightedMLE": ("difftilt.algorithms.value_weighted_mle", "ValueWeightedMLE"),
    "RAFT": ("difftilt.algorithms.raft", "RAFT"),
    "Distill": ("difftilt.algorithms.distill", "Distill"),
    "AdjointMatching": ("difftilt.algorithms.adjoint_matching", "AdjointMatching"),
    "RewardBackprop": ("difftilt.algorithms.reward_backprop", "RewardBackprop"),
    "TrajectoryBalance": ("difftilt.algorithms.trajectory_balance", "TrajectoryBalance"),
    "VarGrad": ("difftilt.algorithms.trajectory_balance", "VarGrad"),
    "BestOfN": ("difftilt.samplers.best_of_n", "BestOfN"),
    "ValueWeighted": ("difftilt.samplers.value_weighted", "ValueWeighted"),
    "SMC": ("difftilt.samplers.smc", "SMC"),
    "Refine": ("difftilt.samplers.refine", "Refine"),
    "ClassifierGuidance": ("difftilt.samplers.classifier_guidance", "ClassifierGuidance"),
    "MCMC": ("difftilt.samplers.mcmc", "MCMC"),
    "Policy": ("difftilt.core.policy", "Policy"),
    "Conditions": ("difftilt.core.conditions", "Conditions"),
    "conditioned": ("difftilt.networks.conditioned", "conditioned"),
    "prompts": ("difftilt.networks.pipeline", "prompts"),
    "PromptReward": ("difftilt.rewards.prompts", "PromptReward"),
    "lora": ("difftilt.networks.lora", "lora"),
    "save_adapters": ("difftilt.networks.saving", "save_adapters"),
    "save_network": ("difftilt.networks.saving", "save_network"),
    "windowed": ("difftilt.networks.windowed", "windowed"),
    "near": ("difftilt.networks.near", "near"),
    "varying": ("difftilt.networks.near", "varying"),
    "Near": ("difftilt.rewards.near", "Near"),
    "LabelLikelihood": ("difftilt.rewards.likelihood", "LabelLikelihood"),
    "combined": ("difftilt.rewards.combined", "combined"),
    "Objective": ("difftilt.rewards.combined", "Objective"),
    "Requirement": ("difftilt.rewards.combined", "Requirement"),
    "Anchor": ("difftilt.core.algorithm", "Anchor"),
    "Campaign": ("difftilt.lab", "Campaign"),
    "CampaignSettings": ("difftilt.campaigns.history", "CampaignSettings"),
    "EnsembleReward": ("difftilt.rewards.ensemble", "EnsembleReward"),
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Public names, imported at first use so that ``import difftilt`` stays fast."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'difftilt' has no attribute '{name}'; it has {', '.join(__all__)}")
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(module), attribute)

r"""Flow matching along the straight path (rectified flow): its ODE, its SDE, and the memoryless chain.

Forward: :math:`x_t = (1 - t) x_0 + t \epsilon`. The network predicts the velocity
:math:`u(x_t, t) = E[\epsilon - x_0 \mid x_t]`, which is as good as

.. math:: \hat x_0 = x_t - t u, \qquad \hat\epsilon = x_t + (1 - t) u, \qquad
    \nabla \log p_t(x_t) = -\hat\epsilon / t                                                         \qquad (1)

The ODE :math:`dx = u\,dt` and the SDE

.. math:: dx = \Big( u + \frac{g_t^2}{2 t} \hat\epsilon \Big) dt + g_t\, dw,
    \qquad g_t = a \sqrt{ t / (1 - t) }                                                              \qquad (2)

(run from ``t = 1`` to 0) have the same marginals, whatever the level :math:`a`. One step ``t -> s`` solves (2) exactly
for :math:`\hat x_0, \hat\epsilon` held fixed: with
:math:`\kappa = \big( \frac{(1 - t)\, s}{(1 - s)\, t} \big)^2` and :math:`\sigma^2 = s^2 (1 - \kappa^{a^2/2})`,

.. math:: x_s = (1 - s)\, \hat x_0 + \sqrt{s^2 - \sigma^2}\; \hat\epsilon + \sigma z                  \qquad (3)

- ``level = 0``: Euler on the ODE, :math:`x_s = x_t - (t - s) u`. It has no density: ``log_prob`` raises, ``kl`` is 0 or
  infinite.
- ``0 < level``: Flow-GRPO's SDE.
- ``level = sqrt(2)``: the posterior :math:`q(x_s \mid x_t, \hat x_0)` of the path; the least level that is memoryless,
  i.e. whose :math:`x_1` tells nothing about :math:`x_0`, as adjoint matching asks for.

The last step (``s = 0``) has no noise, unless ``sigma_min`` gives it some. Steps of one process differ in mean only:
the KL is that of :mod:`difftilt.core.gaussian_step`.

**Window.** All levels share their marginals, so a chain may change its level on the way: with ``window = (high, low)``
the steps that start at ``high >= t > low`` have the noise of ``level``, the others are those of the ODE. They have no
density, and are to be run by a frozen network while the window's are tuned (:mod:`difftilt.networks.windowed`).

Differs from Flow-GRPO, whose step is Euler-Maruyama on (2): that adds noise to the last step, needs a clamp where
:math:`g` is infinite (``t = 1``), and there misses the marginals by an amount that hardly falls with K.

References:
    Liu et al. 2022 (rectified flow), https://arxiv.org/abs/2209.03003; Lipman et al. 2022 (flow matching),
    https://arxiv.org/abs/2210.02747; Liu et al. 2025 (Flow-GRPO, eq. 9), https://arxiv.org/abs/2505.05470;
    Domingo-Enrich et al. 2024 (memoryless noise, eq. 23), https://arxiv.org/abs/2409.08861; Li et al. 2025 (MixGRPO, a
    window), https://arxiv.org/abs/2507.21802.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from difftilt.core.gaussian_step import GaussianStep, GaussianSteps, per_row
from difftilt.core.noise import Linear
from difftilt.core.registry import register
from difftilt.core.schedule import check_window, within
from difftilt.errors import ConfigError
from difftilt.types import Float, Tensor

MEMORYLESS = math.sqrt(2)
EVERYWHERE = (1.0, 0.0)


@register("process", "flow")
class Flow(GaussianSteps):
    r"""The straight path with a velocity network.

    Args:
        level: ``a`` of the SDE, 0 (the ODE) or more; Flow-GRPO: 0.7; :math:`\sqrt 2` is memoryless.
        sigma_min: floor under the std of every step in the window, in units of the state; 0 leaves steps without noise
            as they are.
        window: ``(high, low)``, times at which steps with noise start; all by default.

    Raises:
        ConfigError: an argument is out of range.
    """

    prediction = "velocity"
    prior_std = 1.0

    def __init__(
        self, level: float = MEMORYLESS, *, sigma_min: float = 0.0, window: Sequence[float] = EVERYWHERE
    ) -> None:
        if not (0 <= level < math.inf and 0 <= sigma_min < math.inf):
            raise ConfigError(f"expected level >= 0 and sigma_min >= 0; got {level} and {sigma_min}; correct them")
        self.level, self.sigma_min, self.schedule = level, sigma_min, Linear()
        check_window(window)
        self.window = (window[0], window[1])
        self.memoryless = level >= MEMORYLESS and self.window[0] == 1
        self.full_noise = level >= MEMORYLESS and self.window == EVERYWHERE

    def transition(
        self, prediction: Float[Tensor, "B *event"], x_t: Float[Tensor, "B *event"], t: Tensor, s: Tensor
    ) -> GaussianStep:
        """The kernel (3), its mean in at least float32. Gradient flows to ``prediction`` and ``x_t``."""
        t, s = t.double(), s.double()
        noisy = within(t, self.window)
        kept = ((1 - t) * s / ((1 - s) * t)) ** (noisy * self.level**2 / 2)  # of the noise, kappa to the a^2 / 4
        std, direction = s * (1 - kept.square()).sqrt(), s * kept
        state, network = 1 - s + direction, direction * (1 - t) - (1 - s) * t
        law = self._linear_step(x_t, prediction, state, network, std)
        return GaussianStep(law.mean, law.std.where(noisy, 0.0))

    def denoised(
        self, prediction: Float[Tensor, "B *event"], x_t: Float[Tensor, "B *event"], t: Tensor
    ) -> Float[Tensor, "B *event"]:
        r""":math:`\hat x_0` of (1)."""
        return x_t - per_row(t, x_t) * prediction

    def denoising_loss(
        self,
        prediction: Float[Tensor, "B *event"],
        x_0: Float[Tensor, "B *event"],
        x_t: Float[Tensor, "B *event"],
        t: Tensor,
    ) -> Float[Tensor, " B"]:
        """Squared error of the velocity, mean over the event (flow matching).

        The noise is recovered from ``x_t``; it is taken as 0 where there is none, at ``t = 0``.
        """
        return (prediction - (self._noise_in(x_0, x_t, t) - x_0)).square().flatten(1).mean(-1)

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"level": self.level, "sigma_min": self.sigma_min, "window": list(self.window)}

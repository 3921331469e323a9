"""Small networks sized for two CPU cores; importing this package registers them by name."""

from difftilt.networks.conditioned import ConditionedDenoiser
from difftilt.networks.conv import ConvDenoiser
from difftilt.networks.regressor import ConvRegressor, RecurrentRegressor
from difftilt.networks.timed import TimedConvDenoiser
from difftilt.networks.transformer import TransformerDenoiser
from difftilt.networks.windowed import Windowed

__all__ = [
    "ConditionedDenoiser", "ConvDenoiser", "ConvRegressor", "RecurrentRegressor", "TimedConvDenoiser",
    "TransformerDenoiser", "Windowed",
]  # fmt: skip

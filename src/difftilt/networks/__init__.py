"""Small networks sized for two CPU cores, and adapters around models of other libraries, all registered by name."""

from difftilt.networks.causal import CausalDenoiser
from difftilt.networks.conditioned import ConditionedDenoiser
from difftilt.networks.conv import ConvDenoiser
from difftilt.networks.diffusers_model import DiffusersDenoiser
from difftilt.networks.graph_transformer import GraphTransformer
from difftilt.networks.guided import Guided
from difftilt.networks.image_classifier import ConvClassifier
from difftilt.networks.lora import Adapted
from difftilt.networks.masked_lm import MaskedLM
from difftilt.networks.near import NearDenoiser
from difftilt.networks.regressor import ConvRegressor, PerceptronRegressor, RecurrentRegressor, WindowRegressor
from difftilt.networks.scan import ScanRegressor
from difftilt.networks.timed import TimedConvDenoiser
from difftilt.networks.transformer import TransformerDenoiser
from difftilt.networks.variants import StabilityRegressor, VariantDenoiser, VariantRegressor
from difftilt.networks.windowed import Windowed

__all__ = [
    "Adapted", "CausalDenoiser", "ConditionedDenoiser", "ConvClassifier", "ConvDenoiser", "ConvRegressor",
    "DiffusersDenoiser", "GraphTransformer", "Guided", "MaskedLM", "NearDenoiser", "PerceptronRegressor",
    "RecurrentRegressor", "ScanRegressor", "StabilityRegressor", "TimedConvDenoiser", "TransformerDenoiser",
    "VariantDenoiser", "VariantRegressor", "WindowRegressor", "Windowed",
]  # fmt: skip

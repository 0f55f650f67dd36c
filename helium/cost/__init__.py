"""Statistics, profiles and cost models."""

from helium.cost.estimates import Estimates
from helium.cost.model import CostModel, TokenStepModel
from helium.cost.profile import Profile, operator_signatures
from helium.cost.roofline import DEVICES, MODELS, Device, ModelShape, RooflineModel
from helium.cost.statistics import LengthStatistics

__all__ = [
    "DEVICES",
    "MODELS",
    "CostModel",
    "Device",
    "Estimates",
    "LengthStatistics",
    "ModelShape",
    "Profile",
    "RooflineModel",
    "TokenStepModel",
    "operator_signatures",
]

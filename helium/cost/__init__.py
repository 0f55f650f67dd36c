"""Statistics, profiles and cost models."""

from helium.cost.calibration import (
    Calibration,
    MeasuredStep,
    device_of_card,
    fit_calibration,
    load_calibration,
)
from helium.cost.estimates import Estimates
from helium.cost.model import CostModel, TokenStepModel
from helium.cost.profile import Profile, operator_signatures
from helium.cost.roofline import DEVICES, MODELS, Device, ModelShape, RooflineModel
from helium.cost.statistics import LengthStatistics

__all__ = [
    "DEVICES",
    "MODELS",
    "Calibration",
    "CostModel",
    "Device",
    "Estimates",
    "LengthStatistics",
    "MeasuredStep",
    "ModelShape",
    "Profile",
    "RooflineModel",
    "TokenStepModel",
    "device_of_card",
    "fit_calibration",
    "load_calibration",
    "operator_signatures",
]

"""Rewards learned from few measurements, with what is not known of them: mean, epistemic std, draws, calibration."""

"""Trains and scores deep anomaly detectors, and writes the papers' AUROC tables."""

__version__ = "0.1.0"

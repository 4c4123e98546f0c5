"""Metrics judge tables of scores, never models."""

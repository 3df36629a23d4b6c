"""Metrics, reports and cards of trained models."""

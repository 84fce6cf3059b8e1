"""Measuring matchers: PCK that says how it was measured, and the report that shows whether KBC helps."""

from kbc.evaluation.pck import PCK, PCKResult, Protocol, correct, pck, reference_length

__all__ = ["PCK", "PCKResult", "Protocol", "correct", "pck", "reference_length"]

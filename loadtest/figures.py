"""Ratios within one run and the targets that they are held against."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One ratio with its target."""

    name: str
    value: float
    target: str
    is_met: bool


def at_least(name: str, value: float, limit: float) -> Figure:
    return Figure(name, value, f">= {limit:g}", value >= limit)


def at_most(name: str, value: float, limit: float) -> Figure:
    return Figure(name, value, f"<= {limit:g}", value <= limit)

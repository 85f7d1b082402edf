"""Medians, spreads and how figures are written, for every table of scripts/bench."""

import statistics

# A turn of the intent part counts as so many rounds.
PASSES = 2


def known(values):
    return [value for value in values if value is not None]


def median(values):
    values = known(values)
    return statistics.median(values) if values else None


def spread(values):
    values = known(values)
    return [min(values), max(values)] if values else None


def rounded(value):
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, list):
        return [rounded(part) for part in value]
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return value


def paired(runs, base, key):
    """Ratios of the runs to those of the same round: both are round to figures."""
    both = [number for number in runs if number in base and runs[number].get(key) and base[number].get(key)]
    return [runs[number][key] / base[number][key] for number in both]


def number(value, digits=0):
    return "-" if value is None else f"{value:,.{digits}f}"


def with_spread(value, low_high, digits=2):
    """The median, and in brackets the smallest and the largest."""
    if value is None:
        return "-"
    low, high = low_high
    return f"{value:,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"

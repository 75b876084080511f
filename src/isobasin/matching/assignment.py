"""The assignment problem, by scipy."""

from __future__ import annotations

from typing import Any


def linear_sum_assignment(costs: Any, *, maximize: bool = False) -> tuple[Any, Any]:
    """`scipy.optimize.linear_sum_assignment`, imported with the first problem: many commands have none.

    Args:
        costs: Of giving each row each column, `(rows, columns)`.
        maximize: Look for the largest sum instead.

    Returns:
        The rows that have one in order, and the column of each.
    """
    from scipy import optimize

    return optimize.linear_sum_assignment(costs, maximize)

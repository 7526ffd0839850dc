"""The expression of a forecast that was chosen as a part: so that what searches among forecasts leaves a recipe."""

from __future__ import annotations

from forecache.methods.goc import goc
from forecache.methods.taylorseer import feedback, taylorseer
from forecache.parts.forecasts import Feedback, Forecast, Gradient, Reuse, Taylor
from forecache.plan.method import Method


def with_forecast(base: Method, forecast: Forecast) -> Method | None:
    """The registered method that gives a base of plain reuse this forecast; None where there is none."""
    if isinstance(forecast, Reuse):
        return base
    if isinstance(forecast, Taylor) and forecast.history == "computed":
        return taylorseer(base, forecast.order)
    if isinstance(forecast, Feedback):
        return feedback(base, forecast.order, forecast.strength)
    return goc(base, forecast.eta, history=forecast.history) if isinstance(forecast, Gradient) else None

"""Pictures; they need the extra ``plots``."""

from sb3_trmrl.plots.adaptation_curve import plot_adaptation_curve

__all__ = ["plot_adaptation_curve"]

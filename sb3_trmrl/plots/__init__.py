"""Pictures of adaptation, learning, attention and tasks."""

from sb3_trmrl.plots.adaptation_curve import plot_adaptation_curve
from sb3_trmrl.plots.attention import plot_attention, plot_embeddings
from sb3_trmrl.plots.learning_curve import plot_learning_curve
from sb3_trmrl.plots.ood import plot_task_returns
from sb3_trmrl.plots.performance_profile import plot_performance_profile

__all__ = [
    "plot_adaptation_curve",
    "plot_attention",
    "plot_embeddings",
    "plot_learning_curve",
    "plot_performance_profile",
    "plot_task_returns",
]

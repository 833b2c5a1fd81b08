"""What the name of a metric says: which way is better, and whose model it is of."""

from typing import Literal

from p2pfed.tasks_catalogue import PERSONAL_PREFIX

Direction = Literal["higher", "lower", "unknown"]

_HIGHER = {
    "accuracy", "auc", "auc_macro", "average_precision", "balanced_accuracy", "c_index",
    "concordance", "dice", "f1", "f1_macro", "iou", "jaccard", "precision", "r2", "recall",
    "sensitivity", "specificity",
}  # fmt: skip
_LOWER = {
    "brier", "error", "expected_calibration_error", "hausdorff", "loss", "mae",
    "mean_absolute_error", "mean_squared_error", "mse", "rmse",
}  # fmt: skip


def direction(name: str) -> Direction:
    """Which way a metric of this name is better; ``unknown`` for one that is not known here."""
    plain = name.removeprefix(PERSONAL_PREFIX)
    if plain in _HIGHER:
        return "higher"
    return "lower" if plain in _LOWER else "unknown"

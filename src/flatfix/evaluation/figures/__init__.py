"""The figures of an evaluation, one module for each family; answers in, a matplotlib `Figure` out.

They are drawn without pyplot, which would keep each of them in global state. A title states what the figure shows.
"""

from flatfix.evaluation.figures.confusion import confusion_matrix
from flatfix.evaluation.figures.learning import learning_curves
from flatfix.evaluation.figures.ranking import precision_recall, roc
from flatfix.evaluation.figures.reliability import reliability
from flatfix.evaluation.figures.scores import score_histogram
from flatfix.evaluation.figures.sheet import contact_sheet
from flatfix.evaluation.figures.style import save

__all__ = [
    "confusion_matrix",
    "contact_sheet",
    "learning_curves",
    "precision_recall",
    "reliability",
    "roc",
    "save",
    "score_histogram",
]

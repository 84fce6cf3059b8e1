"""One labelled picture → a folder: points carried over to other pictures, with the probability that each is right."""

from kbc.labelling.detections import Detection, read_detections
from kbc.labelling.labels import Category, Exemplar, Labels, find_images, read_labels
from kbc.labelling.pipeline import FoundObject, Labeller, Transferred, transfer

__all__ = [
    "Category",
    "Detection",
    "Exemplar",
    "FoundObject",
    "Labeller",
    "Labels",
    "Transferred",
    "find_images",
    "read_detections",
    "read_labels",
    "transfer",
]

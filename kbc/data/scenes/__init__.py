"""Drawn small-object scenes: figures, shapes, rendering, and the data set of them."""

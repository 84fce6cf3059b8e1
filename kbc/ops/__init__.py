"""4D convolution: `center_pivot_conv4d`, its modules and the exact evaluation of only the rows that are asked for."""

from kbc.ops.conv4d import center_pivot_conv4d
from kbc.ops.cpu import empty_channels_last
from kbc.ops.modules import CenterPivotConv4d, CenterPivotStack
from kbc.ops.query_rows import query_rows
from kbc.ops.spec import Activation, Backend, Padding
from kbc.ops.streaming import Layer

__all__ = [
    "Activation",
    "Backend",
    "CenterPivotConv4d",
    "CenterPivotStack",
    "Layer",
    "Padding",
    "center_pivot_conv4d",
    "empty_channels_last",
    "query_rows",
]

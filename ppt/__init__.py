"""ppt: weakly supervised referring image segmentation by point prompting (CVPR 2024)."""

__version__ = "0.1.0"

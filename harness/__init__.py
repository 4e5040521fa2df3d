"""Russian SuperGLUE for small language models: evaluation, fine-tuning and quantisation with figures to defend."""

__version__ = "0.1.0"

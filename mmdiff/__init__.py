"""mmdiff: controlled research on video and joint audio+video diffusion, from a laptop to a cluster."""

__version__ = "0.1.0"

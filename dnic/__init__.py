"""dnic compiles a PyTorch model into a training program of decoupled stages."""

__version__ = "0.1.0"

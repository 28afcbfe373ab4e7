"""Text-to-3D, generation, inversion and editing by score distillation from frozen priors."""

__version__ = "0.4.0"

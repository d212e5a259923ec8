"""Where in depth should a language model spend its FFN parameters?"""

__version__ = "0.1.0"

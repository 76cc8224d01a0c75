"""tel-edge: telecom question answering by small language models on the device itself.

Four sub-packages, `train`, `export`, `runtime` and `eval`, and one module above them, `demo`.
Importing this package loads none of them.
"""

__version__ = "0.1.0"

"""Files: written whole, locked, known by digest, and model files checked before native code."""

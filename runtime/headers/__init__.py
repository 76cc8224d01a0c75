"""What model files say of themselves, checked before native code opens them."""

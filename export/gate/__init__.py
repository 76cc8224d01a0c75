"""The gate: files beside the model that they were made from."""

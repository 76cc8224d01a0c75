"""The service: a front that speaks HTTP, and a child that computes."""

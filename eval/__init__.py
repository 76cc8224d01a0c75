"""The benchmark, its scoring and the report. Imports only `tel_edge.runtime`."""

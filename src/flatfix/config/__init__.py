"""Configuration: entry points, whole-config validation, the one `instantiate` seam, resolvers and exit codes."""

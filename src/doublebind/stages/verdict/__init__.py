"""The decision policy: evidence in, decisions with reasons out, one module per horn."""

"""A server with known truth: what a client measures against it can be compared with what it was told to do."""

"""Load on an endpoint, measured by a clock that knows its own error."""

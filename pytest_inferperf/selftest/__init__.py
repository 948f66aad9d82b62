"""The self-test of gates: what every gate says without and with an injected regression."""

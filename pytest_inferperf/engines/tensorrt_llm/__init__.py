"""TensorRT-LLM in process: options, what differs between its releases, conversion of its answers, and the engine."""

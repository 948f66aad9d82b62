"""Marks become values: `pytest.Mark` in, `Case`, `Gate` and `GpuRequirement` out, or a clear `MarkError`."""

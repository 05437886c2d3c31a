"""Samplers: one `lax.scan` each, over a callable. They never see a model."""

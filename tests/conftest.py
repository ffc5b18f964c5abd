"""A busy machine must not fail a test: hypothesis counts examples here, not milliseconds."""

from hypothesis import settings

settings.register_profile("default", deadline=None)
settings.load_profile("default")

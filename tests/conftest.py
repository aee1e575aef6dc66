"""For all tests."""

from hypothesis import HealthCheck, settings

# Laws hold however long a busy machine takes for an example: no test may fail by the clock.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

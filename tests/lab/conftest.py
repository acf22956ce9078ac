"""Fixtures of the lab's tests; what they are made of is in lab_models.py."""

import pytest
from lab_models import tiny


@pytest.fixture(scope="session", params=["torch", "mlx"])
def model(request):
    return tiny(request.param)

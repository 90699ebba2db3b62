import pytest

# So that a failed assert of the contract tells as much as one of a test module.
pytest.register_assert_rewrite("tests.platforms.contract")

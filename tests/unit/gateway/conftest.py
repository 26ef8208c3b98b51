from tests.unit.api.conftest import agent, bare, served  # noqa: F401

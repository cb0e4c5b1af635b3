pytest_plugins = (
    "support.fixtures.scheduling",
    "support.fixtures.stored",
    "support.fixtures.ray_session",
    "support.fixtures.jobs",
)

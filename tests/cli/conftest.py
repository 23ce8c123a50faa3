"""The project of the workflow tests."""

from tests.workflows.conftest import manifest, migrated, project

__all__ = ["manifest", "migrated", "project"]

"""Runs the migrations in `migrations`. A file of its own, because only migrations need Alembic."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

from server.base.errors import RegistryError


def alembic_config() -> Config:
    """The configuration of the migrations, to which the caller adds `connection`, and `commits` if it is False."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    return config


def known_revisions() -> set[str]:
    """The revisions that this program can migrate from."""
    return {script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()}


def check_known(revision: str | None) -> None:
    """Raises RegistryError if a newer release has migrated the database."""
    if revision is not None and revision not in known_revisions():
        raise RegistryError(
            f"the database has revision {revision}, which this program does not know; run the newer release that made it"
        )


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Migrates a database to a revision, by default the newest. Raises SQLAlchemyError."""
    with engine.connect() as connection:
        _upgrade(connection, revision, commits=True)


def upgrade_within(connection: Connection) -> None:
    """Migrates a database to the newest revision within the transaction of a connection. Raises SQLAlchemyError."""
    _upgrade(connection, "head", commits=False)


def _upgrade(connection: Connection, revision: str, *, commits: bool) -> None:
    config = alembic_config()
    config.attributes.update(connection=connection, commits=commits)
    command.upgrade(config, revision)

"""Runs the migrations that stand in `migrations`. Apart from `database`, since only who migrates needs Alembic."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from server.base.errors import RegistryError


def alembic_config() -> Config:
    """Where the migrations are; whoever runs them adds the attribute `connection`."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    return config


def check_known(revision: str | None) -> None:
    """Raises RegistryError if a newer release has made the database."""
    known = {script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()}
    if revision is not None and revision not in known:
        raise RegistryError(
            f"the database has revision {revision}, which this program does not know: a newer release made it; run that one"
        )


def upgrade(engine: Engine) -> None:
    """Brings a database to the newest revision. Raises SQLAlchemyError."""
    with engine.connect() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

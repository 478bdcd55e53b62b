"""Runs the migrations over the connection that `migrating` passes, and commits unless the caller does."""

from alembic import context

from server.registry.models.tables import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, transactional_ddl=True, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
if context.config.attributes.get("commits", True):
    connection.commit()

"""The database: tables, transactions, migrations, audit chain, sealed columns."""

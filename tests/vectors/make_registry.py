"""Makes registry-0.1.0.json: a registry of release 0.1.0, with the master key that opens it. Its keys protect nothing.

Run in a checkout of the release (packaging/last-release names the commit), with a virtual environment of the server's packages:

    PYTHONPATH=. python /path/to/tests/vectors/make_registry.py > registry-0.1.0.json
"""

import base64
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from server.licenses import Order  # type: ignore[import-not-found]
from server.office import Plan, found_office, open_office  # type: ignore[import-not-found]
from sqlalchemy import inspect, text

from tests.server.devices import ISSUER, NOW, Device, fingerprint, make_csr

DAY = 86_400


def main() -> None:
    """Writes the rows of all tables."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        found_office(place / "server", Plan(ISSUER, ("localhost",), place / "root.key", None), NOW)
        office = open_office(place / "server")
        made = [Device(number).come(office, factory_only=number == 3) for number in (1, 2, 3, 4)]
        for agent in ("pos-000001", "pos-000002"):
            office.secrets.rotate_by_hand(agent, NOW + 10)
            for number in range(3):
                order = Order(f"{agent}-{number}", "shop", ("sales",), {"till": str(number)}, NOW, NOW + 400 * DAY)
                office.licenses.issue(agent, order, NOW + 20)
        office.licenses.revoke("pos-000001-0", NOW + 30)
        office.secrets.rotate("pos-000001", 1, office.secrets.listed("pos-000001")[0].key_check, 1, NOW + 40)
        office.agents.renew_certificate("pos-000002", make_csr(Device(2).tls), NOW + 50)
        office.agents.saw("pos-000001", NOW + 60, fingerprint(made[0].certificates[0]), 7, "ab" * 32)
        office.agents.set_status("pos-000004", "revoked", NOW + 70)
        office.claims.new_claim(None, False, 3600, NOW + 80)
        office.secrets.demand("pos-000002", NOW + 90)
        office.close()
        office = open_office(place / "server")
        with office.database.engine.connect() as connection:
            tables = {
                table: [
                    {column: _plain(value) for column, value in row.items()}
                    for row in connection.execute(text(f"SELECT * FROM {table}")).mappings()
                ]
                for table in sorted(inspect(connection).get_table_names())
            }
        content: dict[str, Any] = {
            "release": "0.1.0",
            "now": NOW + 100,
            "certificates": {each.agent_id: fingerprint(each.certificates[0]) for each in made},
            "master_key": base64.b64encode((place / "server" / "master.key").read_bytes()).decode(),
            "tables": tables,
        }
        sys.stdout.write(json.dumps(content, indent=1) + "\n")
        office.close()


def _plain(value: object) -> object:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


if __name__ == "__main__":
    main()

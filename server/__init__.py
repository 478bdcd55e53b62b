"""The license server: it registers agents, issues secrets and licenses, and holds the keys.

Imports contracts, settings and common only.

Its rooms, from top to bottom; each imports only rooms below it (import-linter checks that):

main, cli, serving, wiring, api, enrollment, exchange, licensing, agents, keys, registry, web, base
"""

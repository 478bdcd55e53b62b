"""Accounts of operators: people, programs, their credentials and roles."""

"""The papers' tables as TOML files, measured again on any model."""

"""Integrations: the interfaces of serving engines and other libraries, on the requests of a session."""

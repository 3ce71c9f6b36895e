"""Reference numbers, and the runner that holds this project's networks against them (`python -m tests.golden`)."""

"""How commands start: flags, configuration, messages, exit codes."""

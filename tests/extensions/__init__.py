"""Extensions as a user writes them: modules outside the package, named by dotted paths in a configuration."""

"""Configurations: each file has get_config(variant); `default` documents every field."""

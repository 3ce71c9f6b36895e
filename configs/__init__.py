"""Configurations: each file can be read alone and has get_config(variant); `default` documents every field."""

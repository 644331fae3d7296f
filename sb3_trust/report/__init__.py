"""One page about one run: ``sb3-trust report RUN_DIR``."""

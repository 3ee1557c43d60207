"""The `pilot` command: one file a subcommand, thin."""

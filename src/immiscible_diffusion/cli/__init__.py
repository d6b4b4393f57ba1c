"""The subcommands of ``immiscible``, one per file; each has ``main(arguments)``."""

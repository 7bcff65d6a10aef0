"""The fleet's command line: `__main__` starts, `cli` lists the commands, `commands/` has each."""

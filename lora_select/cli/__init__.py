"""The command line: `main` lists the commands, each other module is one."""

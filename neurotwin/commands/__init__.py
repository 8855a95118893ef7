"""The commands of `neurotwin`, one module each.

A module has the function `add_arguments(parser)`, which declares the arguments of its command, and the function
`run(arguments)`, which does it and returns the exit code. :data:`neurotwin.cli.COMMANDS` names them; a module is
imported when its command is asked for, and no earlier.
"""

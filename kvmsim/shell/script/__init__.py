"""The script language of kvmsim: lines to commands, commands to a verdict. Knows no simulator, reads no file.

    words      a line to words, quoted as in a shell, each with its column; ScriptError
    values     a word to a value: sizes, addresses, data, flags, names
    commands   one frozen dataclass for each command
    grammar    the table of all commands; the parser and the help text made from it
    repeat     lines to commands; blocks that are done several times
    outcome    what a command did (Outcome), and a command with what it did (Record)
    expect     does an `expect` match an Outcome
    runner     run a whole script, or one line after the other at a prompt
    complete   what Tab offers, from that table
    output     records for a person or as JSON

The way of a line: text -> words -> command -> execute (the caller's) -> outcome -> emit (the caller's).
A script in a file is parsed as a whole before its first command runs, so one with a mistake changes nothing.
"""

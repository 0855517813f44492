"""The version of all programs, without a look at the installed packages, which takes longer than --help may."""

VERSION = "0.1.0"

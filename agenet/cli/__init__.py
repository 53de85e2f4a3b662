"""The programs: command line in, files, tables and windows out."""

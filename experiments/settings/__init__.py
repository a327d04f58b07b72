"""What can be set: the sections of the YAML files, how a file is read into them, and what to say where one is wrong."""

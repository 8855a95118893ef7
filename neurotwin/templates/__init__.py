"""What `neurotwin new` copies: the files of a project, which train on demo sessions as they are."""

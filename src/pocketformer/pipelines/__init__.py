"""The chains of stages behind the commands: each stage's result is a file, and what is done is not done again."""

"""Visual question answering as lm-eval tasks: YAML files and their scoring, see README.md in this folder."""

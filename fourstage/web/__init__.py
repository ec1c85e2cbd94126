"""Pages that fourstage serves on the reader's own machine: who may ask, and what they are allowed to load."""

"""A second, independent reader of .mnn files: the code that flatc generates from schema/mnn.fbs."""

"""Provider wire formats as pure codecs. Imports the domain and pydantic; knows no HTTP library and no I/O."""

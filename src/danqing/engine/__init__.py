"""Local diffusion. Imports domain, numpy and the model runtimes; never the web stack, the database or the settings."""

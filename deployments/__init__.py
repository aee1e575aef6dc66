"""The shell: the only place that runs Ray Serve, FastAPI, torch and diffusers."""

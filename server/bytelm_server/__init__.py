"""The HTTP server of bytelm; ``bytelm_server.app.create_app`` makes it."""

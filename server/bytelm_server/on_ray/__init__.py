"""bytelm on Ray Serve: what runs in its replicas, and what runs in its HTTP proxies."""

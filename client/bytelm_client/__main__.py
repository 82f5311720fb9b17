"""``python -m bytelm_client`` is ``bytelm``."""

from bytelm_client.cli import main

main()

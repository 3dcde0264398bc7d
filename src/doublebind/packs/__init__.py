"""Content of studies as data: the interface, folder packs, and the two built-in packs."""

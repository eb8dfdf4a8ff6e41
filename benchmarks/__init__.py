"""Measurements that take longer than tests: quality and speed, as figures against a yardstick."""

"""Measurements that answer one question each and stand outside `python -m bench`. Each is a command of its own."""

"""`rsg-harness doctor --check`: does every backend on this machine compute the right numbers?"""

from harness.device_check.check import CheckedBackend, check_devices, checks_table, write_checks

__all__ = ["CheckedBackend", "check_devices", "checks_table", "write_checks"]

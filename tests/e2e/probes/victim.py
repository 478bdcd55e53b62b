"""A process to be attacked: prints its pid and the address of eight bytes of its own, and sleeps."""

import ctypes
import os
import time

buffer = ctypes.create_string_buffer(b"precious")
print(os.getpid(), hex(ctypes.addressof(buffer)), flush=True)
time.sleep(3600)

"""What vLLM's processes run first, in place of the main module of the program that started them.

Their imports take seconds, in which they would not notice that their owner is gone; and they read
their settings only after the first ones, whose warnings nobody could act on. This module must not
import vLLM or numba: see ``start``.
"""

import logging

from bytelm.settings import InheritedLogging
from bytelm.vllm import watchdog

watchdog.install()
logging.getLogger("vllm").setLevel(InheritedLogging().level)

"""What vLLM's processes run first, in place of the main module of the program that started them.

They read their settings only after their first imports, whose warnings nobody could act on. This
module must not import vLLM or numba: see ``start``.
"""

import logging

from bytelm.settings import InheritedLogging

logging.getLogger("vllm").setLevel(InheritedLogging().level)

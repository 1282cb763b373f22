"""refusal_lens: find, check and look at the refusal direction of a chat model.

The public names stand in `__init__.pyi`. Each is imported when it is first used, so that
`import refusal_lens` is quick.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

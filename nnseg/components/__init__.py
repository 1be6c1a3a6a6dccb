"""Rules that every planner, normalizer, network, loss and whatever else has a name keeps.

`check_component` holds one of them to the rules of its kind, those of one's own among them.
"""

from nnseg.components.check import COMPONENTS, ComponentKind, check_component

__all__ = ["COMPONENTS", "ComponentKind", "check_component"]

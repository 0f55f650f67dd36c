"""The workflow language: lazy, symbolic dataflow that builds a ``LogicalPlan``.

Calling an operator records a node; nothing runs. ``helium.ops`` has the operators,
``helium.graphs`` builds graphs from them, ``helium.workflow`` is the decorator style.
"""

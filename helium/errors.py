"""One root error and a subclass per phase.

Every message says what failed, what was expected, what was found and what to do, for example
``operator 'summarize' reads 'draft', which no operator produces; available: ['outline']``.
"""


class HeliumError(Exception):
    """Root of every error this project raises on purpose."""


class ConfigError(HeliumError, ValueError):
    """A configuration value is unknown, of the wrong type or out of range."""


class WorkflowError(HeliumError, ValueError):
    """A workflow graph, its inputs or its JSON form is not valid."""


class PlanError(HeliumError, ValueError):
    """A plan or a workflow context is malformed, too large or unknown."""


class RuleError(HeliumError):
    """An optimizer rule produced an invalid plan; the message names the rule."""


class CacheError(HeliumError):
    """A cache, lease or tree invariant does not hold."""


class EngineError(HeliumError):
    """An engine could not serve a call; the message names the call and the engine."""


class KernelError(HeliumError):
    """A kernel was called with unsupported shapes, types or devices."""

"""daemon.json: one declaration per setting, from which validation, command line, plan, editor and reference page are made.

`parse` makes a DaemonConfig or raises ConfigError with all faults; `plan` says what a change costs; `set_key` edits a text.
"""

from moorage_contract.daemon_config.declaration import Absent, Cost, Setting
from moorage_contract.daemon_config.document import Document, Json, Member, SyntaxFault, read
from moorage_contract.daemon_config.editing import set_key
from moorage_contract.daemon_config.errors import ConfigError, Fault, FaultKind
from moorage_contract.daemon_config.flags import add_arguments, flags_from_namespace, to_arguments
from moorage_contract.daemon_config.kinds import AddressPool, Runtime, Ulimit
from moorage_contract.daemon_config.model import SECTIONS, SETTINGS, DaemonConfig
from moorage_contract.daemon_config.pipe import LOG_PIPE_BYTES, PIPE_REFUSAL
from moorage_contract.daemon_config.planning import Change, Plan, as_json, fingerprint, plan
from moorage_contract.daemon_config.reading import check, parse

RELOADABLE = frozenset(found.key for found in SETTINGS.values() if found.reloadable)
"""Keys that SIGHUP puts in force."""

__all__ = [
    "LOG_PIPE_BYTES",
    "PIPE_REFUSAL",
    "RELOADABLE",
    "SECTIONS",
    "SETTINGS",
    "Absent",
    "AddressPool",
    "Change",
    "ConfigError",
    "Cost",
    "DaemonConfig",
    "Document",
    "Fault",
    "FaultKind",
    "Json",
    "Member",
    "Plan",
    "Runtime",
    "Setting",
    "SyntaxFault",
    "Ulimit",
    "add_arguments",
    "as_json",
    "check",
    "fingerprint",
    "flags_from_namespace",
    "parse",
    "plan",
    "read",
    "set_key",
    "to_arguments",
]

"""The error tree: what the command line prints in one line, and the exit code it ends with.

    LremError                     exit code 1
    ├── ConfigError               exit code 2
    ├── DataError
    ├── IndexingError
    │   ├── BuildError
    │   ├── FilterError
    │   ├── ItemError
    │   ├── SnapshotError
    │   └── StoreError
    ├── RewardError
    ├── RolloutError
    └── TrainingFailed
        └── DamagedCheckpoint

Every message says what is wrong, where, and what to do. Errors from below (a full disk, a lost connection) end a
command in one line too; any other error is a bug and keeps its traceback.
"""


class LremError(Exception):
    """Base of all errors that the user can act on."""

    exit_code = 1


class ConfigError(LremError, ValueError):
    """A configuration is invalid; the message names the setting."""

    exit_code = 2


class DataError(LremError, ValueError):
    """Input data cannot be used; the message names the file and the row."""


class IndexingError(LremError, ValueError):
    """Base of all errors of `lrem.index`."""


class BuildError(IndexingError):
    """No index can be built from these vectors or this factory string."""


class FilterError(IndexingError):
    """A filter is invalid; the message names the place in it."""


class ItemError(IndexingError):
    """An item cannot be written; the message names the item."""


class SnapshotError(IndexingError):
    """A snapshot is damaged, incomplete, or belongs to another model."""


class StoreError(IndexingError):
    """A collection's folder cannot be used."""


class RewardError(LremError, ValueError):
    """A reward cannot be imported, or returned an invalid value; the message names the reward."""


class RolloutError(LremError, RuntimeError):
    """The rollout pool cannot continue; the message names the actor and its task."""


class TrainingFailed(LremError, RuntimeError):
    """Training cannot continue, and restarting its workers would not help."""


class DamagedCheckpoint(TrainingFailed):
    """At least one rank cannot read the checkpoint."""

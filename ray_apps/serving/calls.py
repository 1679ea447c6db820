"""Deployment calls that survive failures: a dead replica, a closed shard, a generation being replaced.

All calls are idempotent, so each can be sent again.
"""

import asyncio
import sqlite3
from typing import ParamSpec, TypeVar

from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from lrem.errors import StoreError
from ray_apps.serving.errors import too_many_requests, unavailable
from ray_apps.serving.handles import RemoteMethod
from ray_apps.serving.index_shard import OtherModelError

STORE_RETRIES = 4  # calls to a shard whose collection a failure has closed
RETRY_S = 0.5  # pause before such a retry, or while old and new replicas disagree on the model
P = ParamSpec("P")
T = TypeVar("T")


async def call(method: RemoteMethod[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a deployment's method; a caller that is cancelled cancels the call.

    Retries once if the replica died, STORE_RETRIES times if its collection is closed, and without limit (the caller
    has a deadline) while replicas of another model answer.
    """
    died, closed = False, 0
    while True:
        response = method.remote(*args, **kwargs)
        try:
            return await response
        except RayActorError:
            if died:
                raise
            died = True
        except RayTaskError as error:
            if isinstance(error.cause, StoreError) and closed < STORE_RETRIES:  # another replica may answer meanwhile
                closed += 1
            elif not isinstance(error.cause, OtherModelError):
                raise
            await asyncio.sleep(RETRY_S)
        except asyncio.CancelledError:
            response.cancel()
            raise


async def call_required(deployment: str, method: RemoteMethod[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a deployment without which no response is possible; `deployment` is its name in messages.

    Raises:
        ServiceError: 503 if it is down, 429 if its queue is full.
    """
    try:
        return await call(method, *args, **kwargs)
    except BackPressureError as error:
        raise too_many_requests() from error
    except (RayActorError, RayServeException) as error:
        raise unavailable(f"the {deployment} does not answer") from error
    except RayTaskError as error:
        if not is_storage_failure(error):
            raise
        raise unavailable(f"the {deployment} cannot answer ({error.cause})") from error
    except RayError as error:  # such as an object lost with its machine
        raise unavailable(f"the {deployment} does not answer") from error


def is_storage_failure(error: BaseException) -> bool:
    """Return True if a replica failed for a reason that may pass: a full disk, or a collection closed by a failure."""
    return isinstance(error, RayTaskError) and isinstance(error.cause, StoreError | sqlite3.Error | OSError)


def describe_failure(error: BaseException) -> str:
    """Return the type of a failure and the first line of its message, if it has one."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return f"{type(cause).__name__}: {cause}".partition("\n")[0].removesuffix(": ")

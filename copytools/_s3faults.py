"""What an S3 storage says when it refuses, as a transfer's error: codes of the protocol, then HTTP statuses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pilot.errors import Code, PilotError, Trait, TransferError
from pilot.staging.faults import Direction, of_os_error
from pilot.staging.result import shown

#: Codes of the protocol by what they mean (Amazon S3 API Reference, Error responses).
_REFUSED = {
    "AccessDenied", "AccountProblem", "AllAccessDisabled", "AuthorizationHeaderMalformed",
    "AuthorizationQueryParametersError", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "RequestTimeTooSkewed",
    "SignatureDoesNotMatch", "TokenRefreshRequired", "UnauthorizedAccess",
}  # fmt: skip
_MISSING = {"NoSuchKey", "NoSuchVersion", "NoSuchBucket", "NotFound"}
_BUSY = {"SlowDown", "ServiceUnavailable", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests",
         "RequestLimitExceeded", "BandwidthLimitExceeded"}  # fmt: skip
_FULL = {"QuotaExceeded", "StorageFull", "XMinioStorageFull", "InsufficientStorage", "EntityTooLarge"}
_DIGEST = {"BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"}


def refusal(direction: Direction, status: int, code: str, text: str) -> TransferError:
    """The error for an answer that is none.

    Args:
        direction: of the transfer.
        status: of HTTP.
        code: of the protocol, empty if the answer has none.
        text: what to tell a person.
    """
    if code in _DIGEST:
        return TransferError(direction.mismatch("crc32c"), text, Trait.RETRY)
    if code in _BUSY or status in (429, 503):
        return TransferError(Code.SERVICENOTAVAILABLE, text, Trait.RETRY)
    if code in _FULL or status == 507:
        return TransferError(Code.NOREMOTESPACE, text, Trait.NEXT)
    if code in _REFUSED or status in (401, 403):
        return TransferError(direction.refused, text, Trait.NEXT)
    if direction is Direction.IN and (code in _MISSING or status == 404):
        return TransferError(direction.missing, text, Trait.NEXT)
    if code == "KeyTooLongError":
        return TransferError(Code.LFNTOOLONG, text, Trait.FATAL)
    if direction is Direction.OUT and status == 412:
        return TransferError(Code.FILEEXISTS, text, Trait.NEXT)
    passing = status >= 500 or status in (408, 409, 412)
    return direction.fault(text, Trait.RETRY if passing else Trait.NEXT)


@contextmanager
def faults(direction: Direction, url: str) -> Iterator[None]:
    """What boto3, urllib3 and the operating system raise, as errors of the table; no signature is shown."""
    where = shown(url)
    try:
        yield
    except TransferError as error:
        raise TransferError(error.code, f"{where}: {error.detail}", error.trait) from error
    except PilotError:
        raise
    except OSError as error:
        raise of_os_error(error, direction, where) from error
    except Exception as error:
        found = _of_urllib3(error, direction, where) or _of_boto3(error, direction, where)
        if found is None:
            raise
        raise found from None


def _of_urllib3(error: Exception, direction: Direction, where: str) -> TransferError | None:
    from urllib3 import exceptions as http

    if not isinstance(error, http.HTTPError):
        return None
    said = re.sub(r"\?\S+", "?...", str(error))  # some quote the URL
    text = f"{where}: {said}"
    if isinstance(error, http.NewConnectionError):
        return TransferError(Code.SERVICENOTAVAILABLE, text, Trait.RETRY)
    if isinstance(error, http.ConnectTimeoutError | http.ReadTimeoutError):
        return TransferError(direction.timed_out, text, Trait.RETRY)
    return direction.fault(text, Trait.NEXT if "certificate" in text.lower() else Trait.RETRY)


def _of_boto3(error: Exception, direction: Direction, where: str) -> TransferError | None:
    try:
        from botocore import exceptions as boto
    except ImportError:  # presigned URLs work without it
        return None
    text = f"{where}: {error}"
    if isinstance(error, boto.ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        return refusal(direction, status_of(error), code, text)
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError
                  | boto.ProfileNotFound | boto.ConfigNotFound):  # fmt: skip
        return TransferError(Code.MISSINGCREDENTIALS, text, Trait.NEXT)
    if isinstance(error, boto.SSLError):
        return direction.fault(text, Trait.NEXT)
    if isinstance(error, boto.ReadTimeoutError | boto.ConnectTimeoutError):
        return TransferError(direction.timed_out, text, Trait.RETRY)
    if isinstance(error, boto.EndpointConnectionError):
        return TransferError(Code.SERVICENOTAVAILABLE, text, Trait.RETRY)
    if isinstance(error, boto.HTTPClientError):
        return direction.fault(text, Trait.RETRY)
    return direction.fault(text, Trait.NEXT) if isinstance(error, boto.BotoCoreError) else None


def status_of(error: Any) -> int:
    """The HTTP status of a `ClientError`."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))

"""S3 objects through obstore: a GET, a PUT or a listed key costs a tenth of the CPU it costs s3fs.

Credentials come from botocore's chain (environment, profile, SSO, assumed role, instance role), so
whatever `aws s3 ls` can read this can read, and an expiring token is renewed in mid-run; obstore's
own chain knows neither profiles nor SSO. Retries are the client's alone and have one budget: a
second layer on top would multiply them. Conditional writes alone are tried once here, and again by
`conditional.py`.

Keys that obstore cannot express, or rewrites (an empty, `.` or `..` segment, as in `a//b.jpg`, a
leading slash, control characters), are legal in S3 and do occur: those are fetched by botocore, and
listings (`s3_listing`) are read from its answers, so that each object is listed once, by its name.
None is written or deleted: it would be another object, which may be another job's lease.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import botocore.client
import botocore.config
import botocore.exceptions
import botocore.session
import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError
from obstore.store import S3Store

from pipeline.errors import UserError
from pipeline.storage.conditional import Limits
from pipeline.storage.entry import Entry, Fetched, bare_etag, is_unsupported
from pipeline.storage.s3_listing import list_objects
from pipeline.storage.s3_options import usual_options

if TYPE_CHECKING:
    from obstore import UpdateVersion

REQUEST_SECONDS = 120  # one try, and all tries of a read
WRITE_SECONDS = 300  # all tries of a write
SILENT_SECONDS = 20  # without a byte
IMAGE_SECONDS = 600
TRIES = 6
WRITE_TRIES = 30  # where half of all tries fail, one write of a billion is lost
# A small object that others wait for: a lease, a pointer, a plan. run/lease.py counts on both.
CONTROL_SECONDS = 10  # one try
CONTROL_ALL_SECONDS = 40  # all tries
# obstore asks for credentials that are good for less than 5 minutes again: so, after a minute.
CREDENTIALS_GOOD = timedelta(minutes=6)


class S3Objects:
    """The objects of one bucket; keys are absolute within it."""

    def __init__(self, bucket: str, options: Mapping[str, str]) -> None:
        self.bucket = bucket
        self.options = usual_options(options)
        self.takes_conditions = True  # until the store says that it knows none

    @cached_property
    def _session(self) -> botocore.session.Session:
        session = botocore.session.Session(profile=self.options.get("profile"))
        profile = session.profile  # of the option, else of AWS_PROFILE
        if profile and profile not in session.available_profiles:
            raise UserError(f"AWS profile {profile!r} does not exist in ~/.aws/config")
        return session

    @cached_property
    def _of_profile(self) -> Mapping[str, Any]:
        """What ~/.aws/config says for the profile."""
        return self._session.get_scoped_config()

    @property
    def anonymous(self) -> bool:
        return self.options.get("anon") == "true"

    @property
    def requester_pays(self) -> bool:
        return self.options.get("requester_pays") == "true"

    @property
    def verify(self) -> bool | str:
        """Whether the certificate of the endpoint is checked, or a file of those to trust."""
        stated = self.options.get("verify", "true")
        if stated in ("true", "false"):
            bundle = self._session.get_config_variable("ca_bundle")
            return stated == "true" and (bundle or True)
        return stated

    @property
    def _root_certificate(self) -> dict[str, Any]:
        if not isinstance(self.verify, str):
            return {}
        try:
            return {"root_certificate": Path(self.verify).read_bytes()}
        except OSError as error:
            raise UserError(
                f"can't read the certificates in {self.verify}: {error.strerror} (check the "
                "storage option verify, or AWS_CA_BUNDLE)"
            ) from error

    @property
    def addressing_style(self) -> str:
        """path, virtual or auto: as the client thinks right for the endpoint."""
        if style := self.options.get("addressing_style"):
            return style
        usual = self._of_profile.get("s3")
        return usual.get("addressing_style", "auto") if isinstance(usual, dict) else "auto"

    @property
    def _payer(self) -> dict[str, str]:
        return {"RequestPayer": "requester"} if self.requester_pays else {}

    @property
    def endpoint_url(self) -> str | None:
        """Where the bucket is, if not at AWS: by the option, the environment or the profile."""
        if stated := self._stated_endpoint:
            return stated
        if {"endpoint_url", "services"} & self._of_profile.keys():
            found: str = self._client.meta.endpoint_url
            return None if found.endswith(".amazonaws.com") else found
        return None

    @property
    def _stated_endpoint(self) -> str | None:
        endpoint = (
            self.options.get("endpoint_url")
            or os.environ.get("AWS_ENDPOINT_URL_S3")
            or os.environ.get("AWS_ENDPOINT_URL")
        )
        if endpoint and not endpoint.startswith(("http://", "https://")):
            raise UserError(f"the endpoint {endpoint!r} must begin with http:// or https://")
        return endpoint

    @property
    def region(self) -> str:
        configured = self.options.get("region") or self._session.get_config_variable("region")
        return configured or os.environ.get("AWS_REGION") or "us-east-1"

    @cached_property
    def store(self) -> S3Store:
        """For all but images and writes; made on first use: it cannot travel between processes."""
        return self._retrying(TRIES, REQUEST_SECONDS)

    @cached_property
    def patient(self) -> S3Store:
        """For writes: what they hold was computed, and a lost one ends the job."""
        return self._retrying(WRITE_TRIES, WRITE_SECONDS)

    def _retrying(self, tries: int, seconds: float) -> S3Store:
        """A client that tries a request so often, with backoff, and none anew after `seconds`."""
        retries = {
            "max_retries": tries - 1,
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=5),
                "base": 2,
            },
            "retry_timeout": timedelta(seconds=seconds),
        }
        return self._connect({"timeout": f"{REQUEST_SECONDS}s"}, retries)

    @cached_property
    def quick(self) -> S3Store:
        """For conditional writes of small objects, and what is read for them: one try each."""
        return self._connect({"timeout": f"{CONTROL_SECONDS}s"}, {"max_retries": 0})

    @cached_property
    def once(self) -> S3Store:
        """For conditional writes of shards: one try each."""
        return self._connect({"timeout": f"{REQUEST_SECONDS}s"}, {"max_retries": 0})

    @cached_property
    def single(self) -> S3Store:
        """For images: `pipeline.segmentation.fetch` counts tries itself and judges the body."""
        # No limit on the whole request: a large image over a busy line is no error while it flows.
        limits = {"timeout": f"{IMAGE_SECONDS}s", "read_timeout": f"{SILENT_SECONDS}s"}
        return self._connect(limits, {"max_retries": 0})

    def _connect(self, limits: dict[str, str], retries: dict[str, Any]) -> S3Store:
        config: dict[str, Any] = {"region": self.region}
        if self.endpoint_url:
            config["endpoint"] = self.endpoint_url
            config["virtual_hosted_style_request"] = False
        if self.addressing_style != "auto":
            config["virtual_hosted_style_request"] = self.addressing_style == "virtual"
        if self.requester_pays:
            config["request_payer"] = True
        provider = None
        if self.anonymous:
            config["skip_signature"] = True
        else:
            provider = self._credential_provider()
        return S3Store(
            self.bucket,
            config=config,  # type: ignore[arg-type]
            credential_provider=provider,
            client_options={  # type: ignore[typeddict-item]
                "allow_http": True,
                "connect_timeout": "5s",
                "allow_invalid_certificates": not self.verify,
                **self._root_certificate,
                **limits,
            },
            retry_config=retries,  # type: ignore[arg-type]
        )

    def _credential_provider(self) -> Any:
        credentials = self._session.get_credentials()
        if credentials is None:
            raise UserError(
                f"no AWS credentials for s3://{self.bucket}: set AWS_PROFILE, or AWS_ACCESS_KEY_ID "
                "and AWS_SECRET_ACCESS_KEY, or pass --source-option anon=true for a public bucket"
            )

        def provide() -> dict[str, Any]:
            frozen = credentials.get_frozen_credentials()
            # What botocore is asked for again it renews in time, if it is about to expire.
            return {
                "access_key_id": frozen.access_key,
                "secret_access_key": frozen.secret_key,
                "token": frozen.token,
                "expires_at": datetime.now(UTC) + CREDENTIALS_GOOD,
            }

        return provide

    @cached_property
    def _client(self) -> botocore.client.BaseClient:
        unsigned = {"signature_version": botocore.UNSIGNED} if self.anonymous else {}
        style = {"addressing_style": self.addressing_style}
        return self._session.create_client(
            "s3",
            region_name=self.region,
            endpoint_url=self._stated_endpoint,
            verify=None if self.verify is True else self.verify,
            config=botocore.config.Config(
                retries={"total_max_attempts": TRIES},
                **unsigned,
                **({"s3": style} if self.addressing_style != "auto" else {}),
            ),
        )

    def __reduce__(self) -> tuple[type[S3Objects], tuple[str, dict[str, str]]]:
        return S3Objects, (self.bucket, self.options)

    def get(self, key: str) -> Fetched:
        if not _expressible(key):
            return self._get_botocore(key)
        result = obstore.get(self.store, key)
        return Fetched(bytes(result.bytes()), bare_etag(result.meta["e_tag"]))

    async def get_async(self, key: str) -> Fetched:
        if not _expressible(key):
            return await asyncio.to_thread(self._get_botocore, key)
        result = await obstore.get_async(self.single, key)
        return Fetched(bytes(await result.bytes_async()), bare_etag(result.meta["e_tag"]))

    def _get_botocore(self, key: str) -> Fetched:
        try:
            answer = self._client.get_object(Bucket=self.bucket, Key=key, **self._payer)  # type: ignore[attr-defined]
        except botocore.exceptions.ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                raise FileNotFoundError(f"s3://{self.bucket}/{key}") from error
            raise
        return Fetched(answer["Body"].read(), bare_etag(answer["ETag"]))

    async def is_encrypted(self, key: str) -> bool:
        """Whether an object's ETag is no MD5 because of how it is encrypted: SSE-KMS, not SSE-S3.

        Asked by a HEAD of botocore's: obstore keeps such headers to itself.
        """
        try:
            answer = await asyncio.to_thread(
                self._client.head_object,  # type: ignore[attr-defined]
                Bucket=self.bucket,
                Key=key,
                **self._payer,
            )
        except botocore.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500:
                raise
            return False  # it refuses to say
        return answer.get("ServerSideEncryption", "AES256") != "AES256"

    def put(self, key: str, data: bytes) -> None:
        self._refuse_inexpressible(key)
        obstore.put(self.patient, key, data, use_multipart=False)

    # -- conditional writes, each tried once

    def limits(self, *, large: bool) -> Limits:
        if large:
            return Limits(WRITE_TRIES, WRITE_SECONDS, REQUEST_SECONDS)
        return Limits(WRITE_TRIES, CONTROL_ALL_SECONDS, CONTROL_SECONDS)

    def look(self, key: str) -> Fetched | None:
        """An object as it is now, with its ETag as the store wrote it."""
        try:
            if not _expressible(key):
                return self._get_botocore(key)  # read only: nothing is made of its ETag
            current = obstore.get(self.quick, key)
            return Fetched(bytes(current.bytes()), current.meta["e_tag"])
        except FileNotFoundError:
            return None

    def create(self, key: str, data: bytes, *, large: bool) -> bool:
        return self._put_if(key, data, "create", self.once if large else self.quick)

    def replace(self, key: str, old: Fetched, new: bytes) -> bool:
        condition: UpdateVersion = {"e_tag": old.etag}
        return self._put_if(key, new, condition, self.quick)

    def refuses_stale(self, key: str) -> bool:
        """Whether a replacement of a version that is gone is refused. Writes the object."""
        self.put(key, b"first")
        stale = self.look(key)
        self.put(key, b"second")
        return stale is not None and not self.replace(key, stale, b"third")

    def _put_if(
        self, key: str, data: bytes, mode: Literal["create"] | UpdateVersion, client: S3Store
    ) -> bool:
        """One conditional PUT; on a store that refuses all of them, as good as one can without."""
        self._refuse_inexpressible(key)
        if not self.takes_conditions:
            if mode == "create" and self.look(key) is not None:
                return False
            obstore.put(client, key, data, use_multipart=False)
            return True
        try:
            obstore.put(client, key, data, mode=mode, use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            return False
        except Exception as error:
            if isinstance(error, FileNotFoundError) and mode != "create":
                return False  # else it is the bucket that is not there
            if not is_unsupported(error):
                raise
            self.takes_conditions = False
            return self._put_if(key, data, mode, client)
        return True

    def info(self, key: str) -> Entry:
        if not _expressible(key):
            return self._info_botocore(key)
        meta = obstore.head(self.store, key)
        return Entry(key, meta["size"], bare_etag(meta["e_tag"]), meta["last_modified"])

    def _info_botocore(self, key: str) -> Entry:
        try:
            answer = self._client.head_object(Bucket=self.bucket, Key=key, **self._payer)  # type: ignore[attr-defined]
        except botocore.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                raise FileNotFoundError(f"s3://{self.bucket}/{key}") from error
            raise
        etag, modified = bare_etag(answer["ETag"]), answer["LastModified"]
        return Entry(key, answer["ContentLength"], etag, modified)

    def delete(self, key: str) -> None:
        self._refuse_inexpressible(key)
        obstore.delete(self.quick, key)  # tried again by `conditional.py`

    def _refuse_inexpressible(self, key: str) -> None:
        if not _expressible(key):
            raise UserError(
                f"s3://{self.bucket}/{key} can't be written: results need a folder without an "
                "empty, `.` or `..` part and without control characters, such as "
                f"s3://{self.bucket}/{_plain(key)}"
            )

    def list(self, prefix: str) -> Iterator[Entry]:
        """Every object under the folder `prefix`, in key order."""
        yield from list_objects(
            self._client, self.bucket, f"{prefix}/" if prefix else "", self._payer
        )


def _expressible(key: str) -> bool:
    return key.isprintable() and not {"", ".", ".."} & set(key.split("/"))


def _plain(key: str) -> str:
    """The folder of a key as obstore can express it."""
    folder = "".join(letter for letter in key.rpartition("/")[0] if letter.isprintable())
    return "/".join(part for part in folder.split("/") if part not in ("", ".", ".."))

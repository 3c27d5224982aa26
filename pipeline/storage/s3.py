"""S3 objects through obstore, which needs a tenth of the CPU of s3fs.

Credentials come from botocore's chain (environment, profile, SSO, assumed role, instance role), so
this module can read what `aws s3 ls` can read, and an expiring token is renewed during a run;
obstore's own chain knows neither profiles nor SSO. Only the client retries, since a second layer
would multiply the tries. Conditional writes are the exception: each is one request here, and
`conditional.py` retries.

Some keys that S3 allows cannot be sent by obstore, or are changed by it (an empty, `.` or `..`
segment, as in `a//b.jpg`, a leading slash, control characters). botocore fetches these objects and
makes the listings (`s3_listing`). They are never written or deleted: obstore would change another
object, which may be another job's lease.
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
    from obstore import GetOptions, UpdateVersion

REQUEST_SECONDS = 120  # one try; also all tries of a read
WRITE_SECONDS = 300  # all tries of a write
SILENT_SECONDS = 20  # of an image's GET without a byte
IMAGE_SECONDS = 600  # of an image's GET
TRIES = 6
WRITE_TRIES = 30  # if half of all tries fail, one write in a billion fails
# Of small objects (lease, pointer, plan); run/lease.py relies on both limits.
CONTROL_SECONDS = 10  # one try
CONTROL_ALL_SECONDS = 40  # all tries
# obstore renews credentials that expire in less than 5 minutes: here every minute.
CREDENTIALS_GOOD = timedelta(minutes=6)


class S3Objects:
    """The objects of one bucket; keys are absolute within it."""

    def __init__(self, bucket: str, options: Mapping[str, str]) -> None:
        self.bucket = bucket
        self.options = usual_options(options)
        self.takes_conditions = True  # False once the store has answered 501

    @cached_property
    def _session(self) -> botocore.session.Session:
        session = botocore.session.Session(profile=self.options.get("profile"))
        profile = session.profile  # the option, else AWS_PROFILE
        if profile and profile not in session.available_profiles:
            raise UserError(f"AWS profile {profile!r} does not exist in ~/.aws/config")
        return session

    @cached_property
    def _of_profile(self) -> Mapping[str, Any]:
        """The settings of the profile in ~/.aws/config."""
        return self._session.get_scoped_config()

    @property
    def anonymous(self) -> bool:
        return self.options.get("anon") == "true"

    @property
    def requester_pays(self) -> bool:
        return self.options.get("requester_pays") == "true"

    @property
    def verify(self) -> bool | str:
        """Whether the endpoint's certificate is checked; a path: with the CA bundle there."""
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
        """path, virtual or auto (the client chooses)."""
        if style := self.options.get("addressing_style"):
            return style
        usual = self._of_profile.get("s3")
        return usual.get("addressing_style", "auto") if isinstance(usual, dict) else "auto"

    @property
    def _payer(self) -> dict[str, str]:
        return {"RequestPayer": "requester"} if self.requester_pays else {}

    @property
    def endpoint_url(self) -> str | None:
        """From the option, the environment or the profile; None for AWS."""
        if stated := self._stated_endpoint:
            return stated
        if {"endpoint_url", "services"} & self._of_profile.keys():
            endpoint: str = self._client.meta.endpoint_url
            return None if endpoint.endswith(".amazonaws.com") else endpoint
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
        """For reads and HEADs, except images; made at first use, because it cannot be pickled."""
        return self._retrying(TRIES, REQUEST_SECONDS)

    @cached_property
    def patient(self) -> S3Store:
        """For unconditional writes: many tries, because a failed one ends the job."""
        return self._retrying(WRITE_TRIES, WRITE_SECONDS)

    def _retrying(self, tries: int, seconds: float) -> S3Store:
        """A client with so many tries, with backoff; no try begins after `seconds`."""
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
        """For conditional writes of small objects and the reads before them: one try each."""
        return self._connect({"timeout": f"{CONTROL_SECONDS}s"}, {"max_retries": 0})

    @cached_property
    def once(self) -> S3Store:
        """For conditional writes of shards: one try each."""
        return self._connect({"timeout": f"{REQUEST_SECONDS}s"}, {"max_retries": 0})

    @cached_property
    def single(self) -> S3Store:
        """For images: one try each; `pipeline.segmentation.fetch` retries and checks the body."""
        # A large image over a slow network is no error as long as bytes arrive.
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
            # botocore renews credentials that are about to expire.
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

    def get_range(self, key: str, start: int, length: int, etag: str | None) -> Fetched:
        """Bytes from `start`; with `etag`, raises if the object has another one by now (412)."""
        if not length:  # no range is empty
            return Fetched(b"", etag)
        if not _expressible(key):
            return self._get_botocore(key, **_ranged(start, length, etag))
        result = obstore.get(self.store, key, options=_range_options(start, length, etag))
        return Fetched(bytes(result.bytes()), bare_etag(result.meta["e_tag"]))

    async def get_range_async(self, key: str, start: int, length: int, etag: str | None) -> Fetched:
        """`get_range` with one try, for images."""
        if not length:
            return Fetched(b"", etag)
        if not _expressible(key):
            ranged = _ranged(start, length, etag)
            return await asyncio.to_thread(self._get_botocore, key, **ranged)
        options = _range_options(start, length, etag)
        result = await obstore.get_async(self.single, key, options=options)
        return Fetched(bytes(await result.bytes_async()), bare_etag(result.meta["e_tag"]))

    def _get_botocore(self, key: str, **more: str) -> Fetched:
        answer = self._ask_botocore("get_object", key, **more)
        return Fetched(answer["Body"].read(), bare_etag(answer["ETag"]))

    def _ask_botocore(self, request: str, key: str, **more: str) -> dict[str, Any]:
        """The answer to `get_object` or `head_object`. Raises FileNotFoundError."""
        try:
            ask = getattr(self._client, request)
            return ask(Bucket=self.bucket, Key=key, **self._payer, **more)
        except botocore.exceptions.ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                raise FileNotFoundError(f"s3://{self.bucket}/{key}") from error
            raise

    async def is_encrypted(self, key: str) -> bool:
        """True if the object's encryption is not SSE-S3 (SSE-KMS ...), so that its ETag is no MD5.

        By a HEAD of botocore: obstore does not give this header. False if the HEAD is refused.
        """
        try:
            answer = await asyncio.to_thread(self._ask_botocore, "head_object", key)
        except FileNotFoundError:
            return False
        except botocore.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500:
                raise
            return False
        return answer.get("ServerSideEncryption", "AES256") != "AES256"

    def put(self, key: str, data: bytes) -> None:
        self._refuse_inexpressible(key)
        obstore.put(self.patient, key, data, use_multipart=False)

    # -- requests of conditional.py: no retries

    def limits(self, *, large: bool) -> Limits:
        if large:
            return Limits(WRITE_TRIES, WRITE_SECONDS, REQUEST_SECONDS)
        return Limits(WRITE_TRIES, CONTROL_ALL_SECONDS, CONTROL_SECONDS)

    def look(self, key: str) -> Fetched | None:
        """The object with its ETag as the store sent it (quoted); None if it is absent."""
        try:
            if not _expressible(key):
                return self._get_botocore(key)  # is never replaced, so its ETag may be bare
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
        """Whether the store refuses to replace a version that is not current. Writes the object."""
        self.put(key, b"first")
        stale = self.look(key)
        self.put(key, b"second")
        return stale is not None and not self.replace(key, stale, b"third")

    def _put_if(
        self, key: str, data: bytes, mode: Literal["create"] | UpdateVersion, client: S3Store
    ) -> bool:
        """One conditional PUT; a GET and a plain PUT once the store has answered 501."""
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
                return False  # a missing bucket else
            if not is_unsupported(error):
                raise
            self.takes_conditions = False
            return self._put_if(key, data, mode, client)
        return True

    def info(self, key: str) -> Entry:
        if _expressible(key):
            meta = obstore.head(self.store, key)
            return Entry(key, meta["size"], bare_etag(meta["e_tag"]), meta["last_modified"])
        answer = self._ask_botocore("head_object", key)
        etag, modified = bare_etag(answer["ETag"]), answer["LastModified"]
        return Entry(key, answer["ContentLength"], etag, modified)

    def delete(self, key: str) -> None:
        self._refuse_inexpressible(key)
        obstore.delete(self.quick, key)

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


def _range_options(start: int, length: int, etag: str | None) -> GetOptions:
    options: GetOptions = {"range": (start, start + length)}
    return {**options, "if_match": f'"{etag}"'} if etag else options


def _ranged(start: int, length: int, etag: str | None) -> dict[str, str]:
    """`_range_options` in the words of botocore."""
    ranged = {"Range": f"bytes={start}-{start + length - 1}"}
    return {**ranged, "IfMatch": f'"{etag}"'} if etag else ranged


def _expressible(key: str) -> bool:
    return key.isprintable() and not {"", ".", ".."} & set(key.split("/"))


def _plain(key: str) -> str:
    """The folder of a key without the parts that obstore can't send."""
    folder = "".join(letter for letter in key.rpartition("/")[0] if letter.isprintable())
    return "/".join(part for part in folder.split("/") if part not in ("", ".", ".."))

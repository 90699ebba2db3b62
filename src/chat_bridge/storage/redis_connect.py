"""Connecting to Redis: one server, a cluster, what Sentinels look after, or the one inside the process."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias, cast

import redis.asyncio
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError

from chat_bridge.errors import SettingsError
from chat_bridge.settings import RedisPlace, how_to_install, redis_place
from chat_bridge.storage.tls import require_files, tls_trouble

# redis-py and the in-process Redis share their methods, but no type that says so.
Client: TypeAlias = Any
Options: TypeAlias = Mapping[str, Any]

ANSWER_SECONDS = 1.0
PATIENT_SECONDS = 5.0  # where nobody waits for a message to go on
SILENT_SECONDS = 5.0
# What any Redis may raise when it can't be asked.
FAILURES = (RedisError, RedisClusterException, OSError, TimeoutError)


@asynccontextmanager
async def connected(url: str | None, seconds: float = ANSWER_SECONDS) -> AsyncGenerator[Client]:
    """A client, which connects when it is used first, within so many seconds; it is closed afterwards. How long an
    answer may take is for the caller to say."""
    clients = _clients(url, seconds)
    try:
        yield clients[0]
    finally:
        for client in clients:
            with suppress(*FAILURES):
                await client.aclose()


async def redis_trouble(url: str) -> str | None:
    """Why this Redis can't be used; None when it answers. Raises SettingsError for a URL that can't work."""
    require_files("REDIS_URL", url, ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"))
    async with connected(url, PATIENT_SECONDS) as client:
        try:
            async with asyncio.timeout(PATIENT_SECONDS):
                await client.ping()
        except FAILURES as error:
            return tls_trouble(error) or "it does not answer: start it, or correct REDIS_URL"
    return None


async def subscriber(client: Client) -> Any:
    """A connection for channels. A cluster tells all its nodes what is published on one, so any of them will do: one
    taken by chance, so that a dead one is not tried forever."""
    if not isinstance(client, RedisCluster):
        return client.pubsub()
    await client.initialize()
    return client.pubsub(node=client.get_random_node())


async def heard(client: Client, subscriptions: Any) -> Any:
    """The next message of a subscription. Raises TimeoutError when its server, asked after a while of silence, does not
    answer: TCP alone would wait for a frozen one for ever."""
    if not isinstance(client, (redis.asyncio.Redis, RedisCluster)):
        return await subscriptions.get_message(timeout=None)  # in the process: there is nothing that could break
    # redis-py connects anew by itself when the connection breaks, and waits as long as it takes.
    async with asyncio.timeout(SILENT_SECONDS + ANSWER_SECONDS):
        if (message := await subscriptions.get_message(timeout=SILENT_SECONDS)) is None:
            await subscriptions.ping()
            while (message := await subscriptions.get_message(timeout=ANSWER_SECONDS)) is None:
                pass
    return message


def place_of(client: Client, key: str) -> str:
    """The node of a cluster that has a key: when one fails, that says nothing of the others."""
    with suppress(RedisClusterException):  # the layout is not known yet, or nobody has the key now
        if isinstance(client, RedisCluster) and (node := client.get_node_from_key(key)):
            return str(node.name)
    return ""


def _clients(url: str | None, seconds: float) -> Sequence[Client]:
    """The client, and what else is to be closed with it."""
    if url is None:
        return [_in_process()]
    try:
        place = redis_place(url)
        options = _options(place, seconds)
        match place.kind:
            case "cluster":
                return [_cluster(place, options)]
            case "sentinel":
                return _sentinel(place, options)
            case _:
                return [_server(url, seconds)]
    except (ValueError, TypeError, RedisClusterException):
        # Their own texts may show the password.
        raise SettingsError(
            "REDIS_URL: is not a Redis URL, or has an option after the ? that redis-py does not know or can't read"
        ) from None


def _timeouts(seconds: float) -> dict[str, Any]:
    # No retries: they would hide a break from the listener, which has to call everybody to look at PostgreSQL then; and
    # that of a cluster's pipeline closes the connections to all nodes.
    # No socket_timeout: redis-py keeps it with asyncio.wait_for, which in Python 3.11 can lose the cancellation of a
    # task, so that it runs on for ever (https://github.com/python/cpython/issues/86296).
    return {
        "socket_connect_timeout": seconds,
        "socket_timeout": None,
        "health_check_interval": 15,
        "retry": Retry(NoBackoff(), 0),
    }


def _options(place: RedisPlace, seconds: float) -> dict[str, Any]:
    """The login, and the options after the ?, in the words of redis-py."""
    given = dict(cast("Options", parse_url(f"{place.scheme}://{place.login}{place.query}")))
    secure = given.pop("connection_class", None) is SSLConnection
    return _timeouts(seconds) | given | ({"ssl": True} if secure else {})


def _server(url: str, seconds: float) -> Client:
    client: Client = cast("Any", redis.asyncio).from_url(url, **_timeouts(seconds))
    _try_options(client)
    return client


def _cluster(place: RedisPlace, options: Options) -> Client:
    nodes = [ClusterNode(host, port or 6379) for host, port in place.hosts]
    # Slots without a node must not take the others along.
    return cast("Any", RedisCluster)(**{**options, "startup_nodes": nodes, "require_full_coverage": False})


def _sentinel(place: RedisPlace, options: Options) -> Sequence[Client]:
    # The login is the servers'. Sentinels with one of their own are told it as sentinel_username and sentinel_password.
    own = {name.removeprefix("sentinel_"): value for name, value in options.items() if name.startswith("sentinel_")}
    servers = {name: value for name, value in options.items() if not name.startswith("sentinel_")}
    logins = ("username", "password", "db")
    common = {name: value for name, value in servers.items() if name not in logins}
    name, _, number = place.path.strip("/").partition("/")
    hosts = [(host, port or 26379) for host, port in place.hosts]
    watchers = common | own | {"socket_timeout": ANSWER_SECONDS}  # so that the next one is asked when one is frozen
    sentinel: Client = cast("Any", Sentinel)(hosts, sentinel_kwargs=watchers, **servers)
    client = sentinel.master_for(name, db=int(number or 0))
    _try_options(client)
    return [client, sentinel]


def _try_options(client: Client) -> None:
    pool = client.connection_pool
    pool.connection_class(**pool.connection_kwargs)  # otherwise a wrong option shows at the first command only


def _in_process() -> Client:
    try:
        from burner_redis import BurnerRedis
    except ImportError:
        raise SettingsError(
            "REDIS_URL is not set and the in-process Redis is not installed: set REDIS_URL, "
            f"or {how_to_install('embedded')}"
        ) from None
    return BurnerRedis()

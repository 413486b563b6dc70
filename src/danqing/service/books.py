"""The books: the services that need no engine, on one database and its own key file. Wires them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from danqing.db import queries
from danqing.db.session import Database
from danqing.domain.ids import uuid7
from danqing.service.accounts import Accounts
from danqing.service.blocks import Blocks
from danqing.service.codes import Codes
from danqing.service.images import Images
from danqing.service.keys import KeyFile, KeyFileError
from danqing.service.ledger import Ledger, wall_clock_ms
from danqing.service.ratelimit import RateLimiter
from danqing.service.refusals import Refusals
from danqing.service.signup import SignUp
from danqing.service.tokens import Tokens
from danqing.service.topup import TopUp
from danqing.service.trail import Trail
from danqing.service.webhooks import parse_secret
from danqing.settings import Settings, SettingsError
from danqing.storage.blobs import OWNER_KEY, Blobs, open_blobs


@dataclass(frozen=True, slots=True)
class Books:
    """What the command line, the admin API and the drawing of images work on."""

    db: Database
    keys: KeyFile
    ledger: Ledger
    accounts: Accounts
    tokens: Tokens
    codes: Codes
    trail: Trail
    blocks: Blocks
    refusals: Refusals
    images: Images
    signup: SignUp
    topup: TopUp
    limiter: RateLimiter

    @classmethod
    def on(
        cls,
        db: Database,
        keys: KeyFile,
        settings: Settings,
        clock_ms: Callable[[], int] = wall_clock_ms,
    ) -> Books:
        """Raises SettingsError where rate limits cannot be kept as the settings say."""
        ledger = Ledger(db, clock_ms)
        trail = Trail(db, keys.derive("audit"), clock_ms)
        tokens = Tokens(db, keys, trail, clock_ms)
        codes = Codes(db, ledger, trail, clock_ms)
        accounts = Accounts(db, ledger, keys, tokens, trail, clock_ms)
        limiter = RateLimiter(settings.rate_limit_url)
        signup = SignUp(
            db,
            ledger=ledger,
            accounts=accounts,
            tokens=tokens,
            codes=codes,
            trail=trail,
            limiter=limiter,
            settings=settings,
            keys=keys,
            clock_ms=clock_ms,
        )
        secret = settings.payments_secret
        return cls(
            db=db,
            keys=keys,
            ledger=ledger,
            accounts=accounts,
            tokens=tokens,
            codes=codes,
            trail=trail,
            blocks=Blocks(db, trail, clock_ms),
            refusals=Refusals(db, clock_ms),
            images=Images(db, trail, clock_ms),
            signup=signup,
            topup=TopUp(
                db, ledger, trail, None if secret is None else parse_secret(secret), clock_ms
            ),
            limiter=limiter,
        )

    async def match_keys(self) -> None:
        """Raise KeyFileError where the key file is not the one this database was made with.

        With another one every token and link would be void without a word.
        """
        mine = self.keys.derive("fingerprint").hex()[:16]
        known = await self.db.write(lambda conn: queries.claim_fact(conn, "keys", mine))
        if known != mine:
            raise KeyFileError(
                "The key file is not the one this database was made with: put that one back "
                "(DANQING_KEYS_FILE says where it is)."
            )

    @asynccontextmanager
    async def open_blobs(
        self, settings: Settings, *, dry_run: bool = False
    ) -> AsyncGenerator[Blobs]:
        """The image store, tried out and this database's own. Raises ValueError, OSError, SettingsError, Unavailable."""
        async with open_blobs(settings.blob_root, fsync=settings.blob_fsync) as blobs:
            await self.match_blobs(blobs, dry_run=dry_run)
            yield blobs

    async def match_blobs(self, blobs: Blobs, *, dry_run: bool = False) -> None:
        """Raise SettingsError where the image store is another database's.

        Its sweeper would take what this one's clients sent for a dead server's, and delete it. A store
        that was nobody's is this database's from now on, but for a `dry_run`. Raises Unavailable.
        """
        mine = await self.db.write(lambda conn: queries.claim_fact(conn, "database", uuid7()))
        owner = await blobs.claim(mine, dry_run=dry_run)
        if owner != mine:
            raise SettingsError(
                f"blob_url: {blobs.shown} is the image store of another database ({owner[:64]!r}, this "
                f"one is {mine!r}): name another folder or PREFIX. Where that database is gone for good, "
                f"delete '{OWNER_KEY}' there, and this one takes the store over."
            )

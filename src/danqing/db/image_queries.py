"""SQL on stored images, as functions of a Connection. They decide nothing and touch no blob."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Integer,
    bindparam,
    func,
    or_,
    select,
    tuple_,
    update,
)

from danqing.db.rows import ImageRow, UnlabelledRow, values_of
from danqing.db.statements import every, insert_rows, one
from danqing.db.tables import accounts, images, tasks, waivers
from danqing.db.task_queries import first_id

_IDS = bindparam("ids", expanding=True)
_IMAGE = select(images).where(images.c.id == bindparam("id"))
_IMAGES_OF = select(images).where(images.c.task_id == bindparam("task_id")).order_by(images.c.idx)
_LIVE_IMAGES = images.c.deleted_ms.is_(None)
_EXPIRED_IMAGES = (
    select(images)
    .where(images.c.expires_ms <= bindparam("now_ms"), _LIVE_IMAGES)
    .where(
        tuple_(images.c.expires_ms, images.c.id)
        > tuple_(bindparam("after_ms", type_=BigInteger), bindparam("after_id"))
    )
    .order_by(images.c.expires_ms, images.c.id)
    .limit(bindparam("rows_max"))
)
_OLDEST = select(func.min(images.c.task_id)).where(_LIVE_IMAGES)
_KEPT_BETWEEN = (
    select(images)
    .where(images.c.task_id >= bindparam("first"), images.c.task_id < bindparam("last"))
    .where(_LIVE_IMAGES, images.c.expires_ms > bindparam("now_ms"))
    .where(
        tuple_(images.c.task_id, images.c.idx)
        > tuple_(bindparam("after_task"), bindparam("after_idx", type_=Integer))
    )
    .order_by(images.c.task_id, images.c.idx)
    .limit(bindparam("rows_max"))
)
_DELETE_IMAGE = (
    update(images)
    .where(images.c.id == bindparam("image_id"), _LIVE_IMAGES)
    .values(deleted_ms=bindparam("now_ms"))
)
_DELETE_OF_BLOB = _DELETE_IMAGE.where(images.c.blob_key == bindparam("of_blob"))
_EXPIRE_IMAGES_OF = (
    update(images)
    .where(images.c.account_id == bindparam("of_account"), _LIVE_IMAGES)
    .values(expires_ms=bindparam("now_ms"))
    .returning(images.c.blob_key)
)
_PAGE_OF = (
    select(images)
    .where(images.c.account_id == bindparam("of_account"), _LIVE_IMAGES)
    .where(images.c.expires_ms > bindparam("now_ms"))
    .order_by(images.c.task_id.desc(), images.c.idx.desc())
    .limit(bindparam("rows_max"))
)
_PAGE_BEHIND = _PAGE_OF.where(
    tuple_(images.c.task_id, images.c.idx) < tuple_(bindparam("task_id"), bindparam("idx"))
)
_EXPIRE = (
    update(images)
    .where(images.c.id == bindparam("image_id"), _LIVE_IMAGES)
    .where(images.c.expires_ms > bindparam("now_ms"))
    .values(expires_ms=bindparam("now_ms"))
)
_NEXT_VERSION = images.c.link_version + 1
_REVOKE = (
    update(images)
    .where(images.c.id == bindparam("image_id"), _LIVE_IMAGES)
    .values(link_version=_NEXT_VERSION)
)
_REVOKE_OF = (
    update(images)
    .where(images.c.account_id == bindparam("of_account"), _LIVE_IMAGES)
    .values(link_version=_NEXT_VERSION)
)
_PLACE = func.coalesce(images.c.idx, -1)
_UNLABELLED = (
    select(
        tasks.c.id.label("task_id"),
        images.c.idx,
        tasks.c.account_id,
        accounts.c.name.label("account_name"),
        tasks.c.end_user,
        tasks.c.dialect,
        tasks.c.model,
        tasks.c.waiver_id,
        waivers.c.version.label("waiver_version"),
        waivers.c.signer,
        images.c.id.label("image_id"),
        images.c.width,
        images.c.height,
        images.c.sha256,
        images.c.label_metadata,
        func.coalesce(images.c.created_ms, tasks.c.created_ms).label("created_ms"),
        images.c.deleted_ms,
    )
    .select_from(tasks)
    .join(waivers, waivers.c.id == tasks.c.waiver_id)
    .join(accounts, accounts.c.id == tasks.c.account_id)
    .outerjoin(images, images.c.task_id == tasks.c.id)
    .where(tasks.c.waiver_id.is_not(None), tasks.c.id >= bindparam("after_task"))
    .where(
        tuple_(tasks.c.id, _PLACE)
        > tuple_(bindparam("after_task"), bindparam("after_idx", type_=Integer))
    )
    # Without a row of an image: links that were passed on, and looks at what was never finished.
    .where(or_(images.c.id.is_not(None), tasks.c.state == "succeeded", tasks.c.charged > 0))
    .order_by(tasks.c.id, _PLACE)
    .limit(bindparam("rows_max"))
)
_UNLABELLED_OF = _UNLABELLED.where(tasks.c.account_id == bindparam("of_account"))
_BLOBS_OF = select(images.c.blob_key).where(images.c.id.in_(_IDS), _LIVE_IMAGES)


def insert_images(conn: Connection, rows: Sequence[ImageRow]) -> None:
    insert_rows(conn, images, [values_of(row) for row in rows])


def image_by_id(conn: Connection, image_id: str) -> ImageRow | None:
    return one(conn, ImageRow, _IMAGE, id=image_id)


def images_of_task(conn: Connection, task_id: str) -> list[ImageRow]:
    return every(conn, ImageRow, _IMAGES_OF, task_id=task_id)


def expired_images(
    conn: Connection, now_ms: int, after: tuple[int, str], rows_max: int
) -> list[ImageRow]:
    """Images that are still there though their time is over, behind one with this end and id."""
    values = {"now_ms": now_ms, "after_ms": after[0], "after_id": after[1], "rows_max": rows_max}
    return every(conn, ImageRow, _EXPIRED_IMAGES, **values)


def oldest_kept(conn: Connection) -> str | None:
    """The task of the oldest image that is still there."""
    return conn.execute(_OLDEST).scalar_one()


def kept_between(
    conn: Connection,
    from_ms: int,
    to_ms: int,
    *,
    now_ms: int,
    after: tuple[str, int],
    rows_max: int,
) -> list[ImageRow]:
    """Images that are kept of tasks made in [from_ms, to_ms), behind the one of this task and place."""
    values = {"first": first_id(from_ms), "last": first_id(to_ms), "now_ms": now_ms}
    values |= {"after_task": after[0], "after_idx": after[1], "rows_max": rows_max}
    return every(conn, ImageRow, _KEPT_BETWEEN, **values)


def mark_images_deleted(conn: Connection, image_ids: Iterable[str], now_ms: int) -> None:
    rows = [{"image_id": image_id, "now_ms": now_ms} for image_id in image_ids]
    if rows:
        conn.execute(_DELETE_IMAGE, rows)


def mark_blobs_deleted(conn: Connection, keys: Iterable[str], now_ms: int) -> None:
    """The same of the images that these are the blobs of."""
    rows = [
        {"image_id": image_id, "of_blob": key, "now_ms": now_ms}
        for key in keys
        for image_id in _image_ids(key)
    ]
    if rows:
        conn.execute(_DELETE_OF_BLOB, rows)


def expire_images_of(conn: Connection, account_id: str, now_ms: int) -> list[str]:
    """End the life of an account's images; their blobs, which are still there."""
    values = {"of_account": account_id, "now_ms": now_ms}
    return list(conn.execute(_EXPIRE_IMAGES_OF, values).scalars())


def images_page(
    conn: Connection, account_id: str, now_ms: int, rows_max: int, behind: ImageRow | None
) -> list[ImageRow]:
    """An account's images that are there, the newest first, from the one behind another."""
    values: dict[str, Any] = {"of_account": account_id, "now_ms": now_ms, "rows_max": rows_max}
    if behind is None:
        return every(conn, ImageRow, _PAGE_OF, **values)
    return every(conn, ImageRow, _PAGE_BEHIND, task_id=behind.task_id, idx=behind.idx, **values)


def expire_image(conn: Connection, image_id: str, now_ms: int) -> bool:
    """End an image's life; False where it had ended."""
    return conn.execute(_EXPIRE, {"image_id": image_id, "now_ms": now_ms}).rowcount == 1


def revoke_links(conn: Connection, image_id: str) -> None:
    """Void all links to an image that were given out until now."""
    conn.execute(_REVOKE, {"image_id": image_id})


def revoke_links_of(conn: Connection, account_id: str) -> int:
    """The same for all images of an account; how many."""
    return conn.execute(_REVOKE_OF, {"of_account": account_id}).rowcount


def unlabelled(
    conn: Connection, after: tuple[str, int], rows_max: int, account_id: str | None = None
) -> list[UnlabelledRow]:
    """What was given out without the AI label behind this task and place, oldest first; of one account, or of all."""
    values: dict[str, Any] = {"after_task": after[0], "after_idx": after[1], "rows_max": rows_max}
    if account_id is None:
        return every(conn, UnlabelledRow, _UNLABELLED, **values)
    return every(conn, UnlabelledRow, _UNLABELLED_OF, of_account=account_id, **values)


def blobs_named_by(conn: Connection, keys: Collection[str]) -> set[str]:
    """The blobs of the images that are still there and whose ids these keys hold.

    Keys end in the image's id, maybe what a copy is called by, and the format: "…/0-<id>.png", "…/0-<id>-w256.webp"
    (in version 0.1.0 "…/<id>.png"): ids have an index, keys have none.
    """
    ids = {one for key in keys for one in _image_ids(key)}
    return set(conn.execute(_BLOBS_OF, {"ids": list(ids)}).scalars())


def _image_ids(key: str) -> tuple[str, ...]:
    """What may be the image's id in a key."""
    stem = key.rpartition("/")[2].partition(".")[0]
    parts = stem.split("-")
    return (stem,) if len(parts) > 3 else (*parts[:2], stem)

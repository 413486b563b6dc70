"""SQL on stored images, as functions of a Connection. They decide nothing and touch no blob."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from sqlalchemy import Connection, bindparam, select, update

from danqing.db.rows import ImageRow
from danqing.db.statements import every, insert_rows, one, values_of
from danqing.db.tables import images

_IDS = bindparam("ids", expanding=True)
_IMAGE = select(images).where(images.c.id == bindparam("id"))
_IMAGES_OF = select(images).where(images.c.task_id == bindparam("task_id")).order_by(images.c.idx)
_LIVE_IMAGES = images.c.deleted_ms.is_(None)
_EXPIRED_IMAGES = (
    select(images)
    .where(images.c.expires_ms < bindparam("now_ms"), _LIVE_IMAGES)
    .order_by(images.c.expires_ms)
    .limit(bindparam("rows_max"))
)
_DELETE_IMAGE = (
    update(images)
    .where(images.c.id == bindparam("image_id"), _LIVE_IMAGES)
    .values(deleted_ms=bindparam("now_ms"))
)
_EXPIRE_IMAGES_OF = (
    update(images)
    .where(images.c.account_id == bindparam("of_account"), _LIVE_IMAGES)
    .values(expires_ms=bindparam("now_ms"))
    .returning(images.c.blob_key)
)
_BLOBS_OF = select(images.c.blob_key).where(images.c.id.in_(_IDS), _LIVE_IMAGES)


def insert_images(conn: Connection, rows: Sequence[ImageRow]) -> None:
    insert_rows(conn, images, [values_of(row) for row in rows])


def image_by_id(conn: Connection, image_id: str) -> ImageRow | None:
    return one(conn, ImageRow, _IMAGE, id=image_id)


def images_of_task(conn: Connection, task_id: str) -> list[ImageRow]:
    return every(conn, ImageRow, _IMAGES_OF, task_id=task_id)


def expired_images(conn: Connection, now_ms: int, rows_max: int) -> list[ImageRow]:
    """Images that are still there though nobody has a link to them any more."""
    return every(conn, ImageRow, _EXPIRED_IMAGES, now_ms=now_ms, rows_max=rows_max)


def mark_images_deleted(conn: Connection, image_ids: Iterable[str], now_ms: int) -> None:
    rows = [{"image_id": image_id, "now_ms": now_ms} for image_id in image_ids]
    if rows:
        conn.execute(_DELETE_IMAGE, rows)


def expire_images_of(conn: Connection, account_id: str, now_ms: int) -> list[str]:
    """End the life of an account's images; their blobs, which are still there."""
    values = {"of_account": account_id, "now_ms": now_ms}
    return list(conn.execute(_EXPIRE_IMAGES_OF, values).scalars())


def known_blobs(conn: Connection, keys: Collection[str]) -> set[str]:
    """Which of these blobs are an image's that is still there.

    Keys end in the image's id and the format, "…/0-<id>.png" (in version 0.1.0 "…/<id>.png"): ids have
    an index, keys have none.
    """
    ids = {_image_id(key) for key in keys}
    return set(conn.execute(_BLOBS_OF, {"ids": list(ids)}).scalars()) & set(keys)


def _image_id(key: str) -> str:
    stem = key.rpartition("/")[2].partition(".")[0]
    whole, _, behind_index = stem.partition("-")
    return behind_index or whole

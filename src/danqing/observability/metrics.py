"""The metrics of /metrics, in one place so that docs and tests can list them. Knows only names and numbers."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_STAGE_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """One registry per server, so that two servers in one process do not share numbers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "danqing_requests_total",
            "Image requests by dialect, model and outcome (ok or an error's code).",
            ("dialect", "model", "outcome"),
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "danqing_stage_seconds",
            "Time an image spent in a stage: queue, encode, denoise, decode, upstream, fetch, moderate, label, store.",
            ("stage",),
            buckets=_STAGE_BUCKETS,
            registry=self.registry,
        )
        self.images = Counter(
            "danqing_images_total",
            "Images delivered, by model.",
            ("model",),
            registry=self.registry,
        )
        self._add_moderation()
        self._add_engines()
        self.upstream_requests = Counter(
            "danqing_upstream_requests_total",
            "Requests relayed to providers, by backend and outcome (ok or an error's code).",
            ("backend", "outcome"),
            registry=self.registry,
        )
        self.upstream_seconds = Histogram(
            "danqing_upstream_seconds",
            "Time a provider took, its polling included, the fetching of its images not.",
            ("backend",),
            buckets=_STAGE_BUCKETS,
            registry=self.registry,
        )
        self.characters_posted = Counter(
            "danqing_characters_posted_total", "Characters charged.", registry=self.registry
        )
        self.blobs_deleted = Counter(
            "danqing_blobs_deleted_total",
            "Blobs deleted by housekeeping: expired, orphan, abandoned, extra.",
            ("why",),
            registry=self.registry,
        )
        self.upload_bytes = Gauge(
            "danqing_upload_bytes",
            "Bytes of clients' pictures in memory, of uploads.bytes_at_once_max at most.",
            registry=self.registry,
        )
        self.answer_bytes = Gauge(
            "danqing_answer_bytes",
            "Bytes of providers' answers and images in memory that are not decoded yet.",
            registry=self.registry,
        )
        self.open_holds = Gauge(
            "danqing_open_holds",
            "Reservations of characters not yet resolved.",
            registry=self.registry,
        )

    def _add_moderation(self) -> None:
        self.moderation = Counter(
            "danqing_moderation_total",
            "Checks of texts and images, by who made them (lists, api, classifier) and outcome: passed, "
            "refused, failed_open (let through) or failed_closed (answered as unavailable).",
            ("source", "outcome"),
            registry=self.registry,
        )
        self.extension = Counter(
            "danqing_extension_total",
            "Prompts that were to be extended, by who did it (rules, model) and outcome: extended, unchanged, "
            "or failed (the original prompt was drawn).",
            ("source", "outcome"),
            registry=self.registry,
        )

    def _add_engines(self) -> None:
        self.steps = Counter(
            "danqing_engine_steps_total",
            "Denoising steps of a batch, by the backend that draws.",
            ("backend",),
            registry=self.registry,
        )
        self.batch_size = Histogram(
            "danqing_engine_batch_size",
            "Images that shared a denoising step, by backend.",
            ("backend",),
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.step_seconds = Histogram(
            "danqing_engine_step_seconds",
            "Time of one denoising step of a batch, by backend.",
            ("backend",),
            buckets=_STAGE_BUCKETS,
            registry=self.registry,
        )
        self.queue_depth = Gauge(
            "danqing_queue_depth",
            "Images waiting for their first step, by backend.",
            ("backend",),
            registry=self.registry,
        )
        self.live = Gauge(
            "danqing_engine_live",
            "Images being drawn, by backend.",
            ("backend",),
            registry=self.registry,
        )

    def watch(self, gauge: Gauge, read: Callable[[], float], *labels: str) -> None:
        """Ask `read` for the gauge's value, of these labels, at each scrape."""
        (gauge.labels(*labels) if labels else gauge).set_function(read)

    def on_step(self, backend: str, seconds: float, batch_size: int) -> None:
        """An engine's observer: one denoising step of a batch."""
        self.steps.labels(backend).inc()
        self.batch_size.labels(backend).observe(batch_size)
        self.step_seconds.labels(backend).observe(seconds)

    def on_timing(self, timing_ms: dict[str, float]) -> None:
        """One image's stages, in milliseconds."""
        for stage, value in timing_ms.items():
            self.stage_seconds.labels(stage).observe(value / 1000)

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)

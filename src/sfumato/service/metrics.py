"""Numbers of a service for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sfumato.service.jobs import STATES

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one service; `page` is what Prometheus reads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._submitted = Counter("sfumato_jobs_submitted", "Jobs queued.", ["task"], registry=self.registry)
        self._ended = Counter("sfumato_jobs_ended", "Jobs ended.", ["task", "state"], registry=self.registry)
        self._images = Counter("sfumato_images", "Images finished.", registry=self.registry)
        self._seconds = Histogram(
            "sfumato_job_seconds",
            "From the request to the end of a job.",
            ["task"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._rows = Histogram(
            "sfumato_batch_images", "Images computed at once, for each image.", buckets=ROWS, registry=self.registry
        )
        self._waiting = Gauge("sfumato_jobs_waiting", "Jobs that have not begun.", registry=self.registry)
        self._models = Gauge("sfumato_models_loaded", "Models in memory.", registry=self.registry)
        self._weights = Gauge("sfumato_weights_bytes", "Bytes of weights in memory.", registry=self.registry)
        self._results = Gauge("sfumato_results_bytes", "Bytes of results and uploads.", registry=self.registry)
        self._answers = Counter("sfumato_http_answers", "Answers by status.", ["status"], registry=self.registry)

    def submitted(self, task: str) -> None:
        """A job was queued."""
        self._submitted.labels(task).inc()

    def ended(self, task: str, state: str, seconds: float) -> None:
        """A job ended, so long after its request."""
        assert state in STATES
        self._ended.labels(task, state).inc()
        self._seconds.labels(task).observe(seconds)

    def finished_image(self, rows: int) -> None:
        """An image is finished, one of `rows` computed at once."""
        self._images.inc()
        self._rows.observe(rows)

    def answered(self, status: int) -> None:
        """An answer was sent."""
        self._answers.labels(str(status)).inc()

    def page(self, waiting: int, models: int, weights: int, results: int) -> bytes:
        """The text that Prometheus reads."""
        self._waiting.set(waiting)
        self._models.set(models)
        self._weights.set(weights)
        self._results.set(results)
        return generate_latest(self.registry)

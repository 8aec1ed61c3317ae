"""The OpenAPI description is true: requests made from it, right and wrong, get the answers that it lists."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from serving import served, service_of

# the description cannot say whether a well-formed request suits a model and the bounds: acceptance is not asked for
ENDLESS = "/v1/jobs/{job}/events"
EXAMPLES = int(os.environ.get("SCHEMA_EXAMPLES", "3"))
"""Of each operation and mode; a longer search is `SCHEMA_EXAMPLES=100 pytest tests/service/test_schema.py`."""


def test_answers_are_those_of_the_description(folders: dict[str, Path], tmp_path: Path) -> None:
    import schemathesis  # here, since collecting the tests should not wait for it
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    service = service_of([folders["text"]], tmp_path, steps=2, count=1, queue=100_000, seconds=5)
    with served(service) as client:
        address = str(client.base_url).rstrip("/")
        description = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
        checked = 0
        for found in description.get_all_operations():
            operation = found.ok()
            if operation.full_path == ENDLESS:
                continue
            checked += 1
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

                @given(case=operation.as_strategy(generation_mode=mode))
                @settings(
                    max_examples=EXAMPLES,
                    derandomize=True,
                    deadline=None,
                    database=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                def check(case: Any) -> None:
                    case.call_and_validate(base_url=address, excluded_checks=[positive_data_acceptance])

                with suppress(Unsatisfiable):  # nothing can be wrong where nothing is sent
                    check()
        assert checked >= 14

"""One request, one pipeline: every image is made by `sfumato.pipeline.pipeline.sample(model, SampleRequest(...))`."""
